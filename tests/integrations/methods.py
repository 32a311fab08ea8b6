"""The methods that integrations are tested with, under the names of their trajectories."""

from __future__ import annotations

from typing import Any

import lowland
from integrations.trajectories import ALPHA, CUTS, LAM, PERIOD, RHO

METHODS: dict[str, Any] = {
    "plain": lowland.Plain(),
    "sam": lowland.SAM(rho=RHO),
    "sampa": lowland.SAMPa(rho=RHO, lam=LAM),
    "looksam": lowland.LookSAM(rho=RHO, k=PERIOD, alpha=ALPHA),
    "msam": lowland.MicroSAM(rho=RHO, m=CUTS),
}
