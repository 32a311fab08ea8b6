"""The page of ``lowland plan``, from its record. Needs no torch."""
