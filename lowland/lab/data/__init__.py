"""Loaders and data sets."""
