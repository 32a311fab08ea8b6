"""TensorBoard event files, on request."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lowland.core.errors import MissingExtraError

FOLDER = "events"
PARTS = ("train", "validation", "test")
TAGS = {
    "train_loss": "train/loss of the steps",
    "lr": "cost/lr",
    "seconds": "cost/seconds",
    "gradients": "cost/gradients",
}


class Events:
    """Writes the epoch lines of a run for TensorBoard.

    Args:
        folder: The run folder; files go to ``events/`` in it.
        step: Where the run goes on; what an earlier process wrote beyond it is hidden.

    Raises:
        MissingExtraError: tensorboard is not installed.
    """

    def __init__(self, folder: Path, step: int) -> None:
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # tensorboard's own dependencies deprecate each other
                from torch.utils.tensorboard import SummaryWriter
        except ImportError:
            raise MissingExtraError("tensorboard", "lab") from None
        self._writer: Any = SummaryWriter(str(folder / FOLDER), purge_step=step + 1)

    def write(self, line: Mapping[str, Any]) -> None:
        """Add the numbers of one epoch line."""
        for name, tag in TAGS.items():
            if line.get(name) is not None:
                self._writer.add_scalar(tag, line[name], line["step"])
        for part in PARTS:
            for name, value in line.get(part, {}).items():
                if value is not None:
                    self._writer.add_scalar(f"{part}/{name}", value, line["step"])

    def close(self) -> None:
        """Write out what is buffered."""
        self._writer.close()
