"""What a method costs: read off its plan, predicted for this machine, and simulated for larger ones."""
