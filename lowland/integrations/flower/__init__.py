"""Flower: clients that train locally by a method, a strategy that survives bad clients, and clients as processes."""

from __future__ import annotations

from lowland.core.errors import MissingExtraError

try:
    import flwr.app
    import flwr.clientapp
    import flwr.serverapp  # noqa: F401 - all that the modules below import
except (ImportError, RuntimeError) as error:
    raise MissingExtraError("flwr", "flower") from error

from lowland.integrations.flower.arrays import arrays_of, load_arrays
from lowland.integrations.flower.client import Local, client_app
from lowland.integrations.flower.processes import Processes
from lowland.integrations.flower.ranks import dismiss, follow, leading
from lowland.integrations.flower.server import FedAvg, Guarded, Round, guarded

__all__ = [
    "FedAvg",
    "Guarded",
    "Local",
    "Processes",
    "Round",
    "arrays_of",
    "client_app",
    "dismiss",
    "follow",
    "guarded",
    "leading",
    "load_arrays",
]
