"""All methods: one paper, one file."""

from lowland.methods.catalog import GEOMETRIES, METHODS
from lowland.methods.text import key_of, kind_of, make, spell

__all__ = ["GEOMETRIES", "METHODS", "key_of", "kind_of", "make", "spell"]
