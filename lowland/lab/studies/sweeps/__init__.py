"""Sweeps: searches for the field values with the best validation metric."""
