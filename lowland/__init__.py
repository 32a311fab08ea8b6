"""Sharpness-aware minimization for PyTorch, at the price of plain training.

``Engine(method, model, optimizer, loss_fn).backward(batch)`` stands where ``loss.backward()`` stood; the base
optimizer, clipping, scaling and schedules stay as they are.
"""

from __future__ import annotations

from lowland.core import checks, schedule, vec
from lowland.core.batch import Parts
from lowland.core.criterion import Criterion
from lowland.core.cutting import Cutter, Slices
from lowland.core.errors import LowlandError
from lowland.core.geometry import L2, Adaptive, Geometry, Layerwise, Preconditioned
from lowland.core.loss import Loss
from lowland.core.probe import Plan, Probe, Reading
from lowland.core.spectral import Spectral
from lowland.engine import Engine
from lowland.engine.closure import ClosureOptimizer
from lowland.executors import Batched, Cost, Counted, Executor, Local, Mesh
from lowland.executors.modes import displaced
from lowland.executors.norm_stats import refresh_stats
from lowland.methods import METHODS
from lowland.methods.adasam import AdaSAM
from lowland.methods.ae_sam import AESAM
from lowland.methods.asam import ASAM
from lowland.methods.async_sam import AsyncSAM
from lowland.methods.ausam import AUSAM
from lowland.methods.base import Method
from lowland.methods.bisam import BiSAM
from lowland.methods.esam import ESAM
from lowland.methods.friendly_sam import FriendlySAM
from lowland.methods.functional_sam import FunctionalSAM
from lowland.methods.gsam import GSAM
from lowland.methods.k_sam import KSAM
from lowland.methods.late import Late
from lowland.methods.le_sam import LESAM
from lowland.methods.logits_sam import LogitsSAM
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
from lowland.methods.unified_sam import UnifiedSAM
from lowland.methods.vasso import VaSSO
from lowland.methods.vsam import ARSAM, VSAM
from lowland.methods.wsam import WSAM
from lowland.methods.xsam import XSAM

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
    "LESAM",
    "METHODS",
    "RST",
    "SAM",
    "SAMON",
    "SLSAM",
    "VSAM",
    "WSAM",
    "XSAM",
    "AdaSAM",
    "Adaptive",
    "AsyncSAM",
    "Batched",
    "BiSAM",
    "ClosureOptimizer",
    "Cost",
    "Counted",
    "Criterion",
    "Cutter",
    "Engine",
    "Executor",
    "FriendlySAM",
    "FunctionalSAM",
    "Geometry",
    "Late",
    "Layerwise",
    "Local",
    "LogitsSAM",
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
    "Preconditioned",
    "Probe",
    "Reading",
    "Renormalized",
    "SAMPa",
    "Slices",
    "Spectral",
    "StableSAM",
    "Switch",
    "UnifiedSAM",
    "VaSSO",
    "checks",
    "displaced",
    "refresh_stats",
    "schedule",
    "vec",
]
