"""Measures of how flat the loss is around the weights."""

from __future__ import annotations

from lowland.sharpness.ascent import m_sharpness

__all__ = ["m_sharpness"]
