"""The page of ``lowland simulate``, from its record. Needs no torch."""
