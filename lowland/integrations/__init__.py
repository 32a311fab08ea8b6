"""The frameworks in which people train: one module for each, loaded by nobody but its users."""
