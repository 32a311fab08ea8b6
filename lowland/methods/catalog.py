"""All methods by name. ``METHODS`` is the only registry."""

from __future__ import annotations

from lowland.core.geometry import L2, Adaptive, Geometry, Layerwise, Preconditioned
from lowland.core.spectral import Spectral
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
from lowland.methods.stable_sam import Renormalized
from lowland.methods.unified_sam import UnifiedSAM
from lowland.methods.vasso import VaSSO
from lowland.methods.vsam import ARSAM, VSAM
from lowland.methods.wsam import WSAM
from lowland.methods.xsam import XSAM

METHODS: dict[str, type[Method]] = {
    "plain": Plain,
    "sam": SAM,
    "sampa": SAMPa,
    "looksam": LookSAM,
    "micro-sam": MicroSAM,
    "vsam": VSAM,
    "arsam": ARSAM,
    "ausam": AUSAM,
    "sl-sam": SLSAM,
    "k-sam": KSAM,
    "esam": ESAM,
    "friendly-sam": FriendlySAM,
    "stable-sam": Renormalized,
    "adasam": AdaSAM,
    "asam": ASAM,
    "sam-on": SAMON,
    "gsam": GSAM,
    "wsam": WSAM,
    "momentum-sam": MomentumSAM,
    "bisam": BiSAM,
    "functional-sam": FunctionalSAM,
    "le-sam": LESAM,
    "ae-sam": AESAM,
    "rst": RST,
    "async-sam": AsyncSAM,
    "late": Late,
    "unified-sam": UnifiedSAM,
    "vasso": VaSSO,
    "xsam": XSAM,
    "logits-sam": LogitsSAM,
}

GEOMETRIES: dict[str, type[Geometry]] = {
    "l2": L2,
    "adaptive": Adaptive,
    "layerwise": Layerwise,
    "preconditioned": Preconditioned,
    "spectral": Spectral,
}
