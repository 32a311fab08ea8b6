"""Checkpoint and resume, bit for bit: `python examples/resume.py`.

Beside model and optimizer, the engine has state: SAMPa keeps a gradient and a batch, LookSAM a vector. All of
it is tensors and plain containers, so `torch.load(weights_only=True)` reads it.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import lowland


def loss_fn(model: nn.Module, batch: Any) -> Tensor:
    inputs, targets = batch
    return nn.functional.cross_entropy(model(inputs), targets, reduction="none")


class Training:
    """A model in training; the number of a step determines its batch."""

    def __init__(self) -> None:
        torch.manual_seed(0)
        self.model = nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Dropout(0.1), nn.Linear(32, 3))
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=0.1, momentum=0.9)
        self.engine = lowland.Engine(lowland.SAMPa(), self.model, self.optimizer, loss_fn)

    def run(self, steps: int) -> None:
        """Train until this number of steps is done."""
        while self.engine.step < steps:
            inputs = torch.randn(32, 8, generator=torch.Generator().manual_seed(self.engine.step))
            self.engine.backward((inputs, inputs[:, :3].argmax(1)))
            self.optimizer.step()
            self.optimizer.zero_grad()

    def save(self, path: Path) -> None:
        """Save the state that later steps depend on."""
        state = {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "engine": self.engine.state_dict(),
            "rng": torch.get_rng_state(),  # dropout draws from the global generator
        }
        torch.save(state, path)

    def load(self, path: Path) -> None:
        """Load the state from `save`."""
        state = torch.load(path, weights_only=True)
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.engine.load_state_dict(state["engine"])
        torch.set_rng_state(state["rng"])


def main(steps: int = 100) -> bool:
    """Interrupt a run halfway; return whether resuming it gives the weights of the uninterrupted one."""
    whole = Training()
    whole.run(steps)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "checkpoint.pt"
        first = Training()
        first.run(steps // 2)
        first.save(path)
        second = Training()
        second.load(path)
        second.run(steps)
    pairs = zip(whole.model.parameters(), second.model.parameters(), strict=True)
    same = all(torch.equal(a, b) for a, b in pairs)
    print(f"after {steps} steps the resumed run {'equals' if same else 'DIFFERS FROM'} the uninterrupted one")
    return same


if __name__ == "__main__":
    main()
