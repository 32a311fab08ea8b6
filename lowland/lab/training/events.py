"""Writes TensorBoard event files."""

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
    """Writes the epoch lines of a run to TensorBoard event files.

    Args:
        folder: The run folder; the files are in its folder ``events/``.
        step: The step at which the run starts or resumes; TensorBoard hides later events of an earlier process.

    Raises:
        MissingExtraError: tensorboard is not installed.
    """

    def __init__(self, folder: Path, step: int) -> None:
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # tensorboard's dependencies give deprecation warnings
                from torch.utils.tensorboard import SummaryWriter
        except ImportError:
            raise MissingExtraError("tensorboard", "lab") from None
        self._writer: Any = SummaryWriter(str(folder / FOLDER), purge_step=step + 1)

    def write(self, line: Mapping[str, Any]) -> None:
        """Write the numbers of one epoch line."""
        for name, tag in TAGS.items():
            if line.get(name) is not None:
                self._writer.add_scalar(tag, line[name], line["step"])
        for part in PARTS:
            for name, value in line.get(part, {}).items():
                if value is not None:
                    self._writer.add_scalar(f"{part}/{name}", value, line["step"])

    def close(self) -> None:
        """Flush and close the files."""
        self._writer.close()
