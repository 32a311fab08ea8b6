"""Steps of two processes at once, side by side."""
