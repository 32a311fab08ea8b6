"""The engine, which runs a method on a model."""

from lowland.engine.engine import Engine

__all__ = ["Engine"]
