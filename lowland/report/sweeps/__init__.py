"""The report of a sweep, from its record alone; needs no torch."""
