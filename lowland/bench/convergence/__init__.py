"""SAM and SAMPa on convex problems with a fixed radius, beside what theorems promise: ``lowland convergence``."""
