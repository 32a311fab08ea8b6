"""Loaders, and where examples come from."""
