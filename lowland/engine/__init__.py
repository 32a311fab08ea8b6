"""One method at work on one model."""

from lowland.engine.engine import Engine

__all__ = ["Engine"]
