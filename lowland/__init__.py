"""Sharpness-aware minimization for PyTorch, at the price of plain training.

``Engine(method, model, optimizer, loss_fn).backward(batch)`` stands where ``loss.backward()`` stood; the base
optimizer, clipping, scaling and schedules stay as they are.
"""

from __future__ import annotations

from lowland import schedule
from lowland.batch import Parts
from lowland.closure import ClosureOptimizer
from lowland.cutting import Cutter, Slices
from lowland.engine import Engine
from lowland.errors import LowlandError
from lowland.executors import Batched, Cost, Counted, Executor, Local, Mesh
from lowland.geometry import L2, Adaptive, Geometry, Layerwise
from lowland.loss import Loss
from lowland.method import Method
from lowland.methods import METHODS
from lowland.methods.adasam import AdaSAM
from lowland.methods.ae_sam import AESAM
from lowland.methods.asam import ASAM
from lowland.methods.async_sam import AsyncSAM
from lowland.methods.ausam import AUSAM
from lowland.methods.bisam import BiSAM
from lowland.methods.esam import ESAM
from lowland.methods.friendly_sam import FriendlySAM
from lowland.methods.gsam import GSAM
from lowland.methods.k_sam import KSAM
from lowland.methods.late import Late
from lowland.methods.looksam import LookSAM
from lowland.methods.micro_sam import MicroSAM
from lowland.methods.momentum_sam import MomentumSAM
from lowland.methods.plain import Plain
from lowland.methods.rst import RST
from lowland.methods.sam import SAM
from lowland.methods.sam_on import SAMON
from lowland.methods.sampa import SAMPa
from lowland.methods.sl_sam import SLSAM
from lowland.methods.stable_sam import Renormalized, StableSAM
from lowland.methods.switch import Switch
from lowland.methods.vsam import ARSAM, VSAM
from lowland.methods.wsam import WSAM
from lowland.modes import displaced
from lowland.probe import Plan, Probe, Reading
from lowland.stats import refresh_stats

__version__ = "0.1.0"

__all__ = [
    "AESAM",
    "ARSAM",
    "ASAM",
    "AUSAM",
    "ESAM",
    "GSAM",
    "KSAM",
    "L2",
    "METHODS",
    "RST",
    "SAM",
    "SAMON",
    "SLSAM",
    "VSAM",
    "WSAM",
    "AdaSAM",
    "Adaptive",
    "AsyncSAM",
    "Batched",
    "BiSAM",
    "ClosureOptimizer",
    "Cost",
    "Counted",
    "Cutter",
    "Engine",
    "Executor",
    "FriendlySAM",
    "Geometry",
    "Late",
    "Layerwise",
    "Local",
    "LookSAM",
    "Loss",
    "LowlandError",
    "Mesh",
    "Method",
    "MicroSAM",
    "MomentumSAM",
    "Parts",
    "Plain",
    "Plan",
    "Probe",
    "Reading",
    "Renormalized",
    "SAMPa",
    "Slices",
    "StableSAM",
    "Switch",
    "displaced",
    "refresh_stats",
    "schedule",
]
