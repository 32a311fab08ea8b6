"""Sharpness-aware minimization for PyTorch, at the price of plain training.

``Engine(method, model, optimizer, loss_fn).backward(batch)`` stands where ``loss.backward()`` stood; the base
optimizer, clipping, scaling and schedules stay as they are.
"""

from __future__ import annotations

from lowland import schedule
from lowland.closure import ClosureOptimizer
from lowland.engine import Engine
from lowland.errors import LowlandError
from lowland.executors import Cost, Counted, Executor, Local
from lowland.geometry import L2, Adaptive, Geometry, Layerwise
from lowland.method import Method
from lowland.methods import METHODS
from lowland.methods.looksam import LookSAM
from lowland.methods.micro_sam import MicroSAM
from lowland.methods.plain import Plain
from lowland.methods.sam import SAM
from lowland.methods.sampa import SAMPa
from lowland.methods.vsam import ARSAM, VSAM
from lowland.probe import Plan, Probe, Reading
from lowland.stats import refresh_stats

__version__ = "0.1.0"

__all__ = [
    "ARSAM",
    "L2",
    "METHODS",
    "SAM",
    "VSAM",
    "Adaptive",
    "ClosureOptimizer",
    "Cost",
    "Counted",
    "Engine",
    "Executor",
    "Geometry",
    "Layerwise",
    "Local",
    "LookSAM",
    "LowlandError",
    "Method",
    "MicroSAM",
    "Plain",
    "Plan",
    "Probe",
    "Reading",
    "SAMPa",
    "refresh_stats",
    "schedule",
]
