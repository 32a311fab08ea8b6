"""Probes divided over groups of ranks, and what these exchange."""
