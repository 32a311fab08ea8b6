"""The page of ``lowland convergence``, from its record. Needs no torch."""
