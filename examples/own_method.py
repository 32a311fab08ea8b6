"""A method of your own in fifteen lines: `python examples/own_method.py`.

TwoRadii averages the gradients at two radii. It *asks* for readings and knows nothing about models, autocast,
scalers or accumulation. The two displaced probes do not depend on each other, so they are asked together: an
executor that can answer two at once will, and the cost line at the end shows what that is worth.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

import lowland
from lowland import checks, vec
from lowland.methods import METHODS, make


@dataclass(frozen=True, kw_only=True)
class TwoRadii(lowland.Method):
    """``d = (g(w + e) + g(w + ratio * e)) / 2`` with ``e = rho * g(w) / ||g(w)||``."""

    ratio: float = 0.5

    def check(self) -> None:
        """Refuse a ratio outside [0, 1]."""
        checks.within("ratio", self.ratio, 0, 1, "1 is SAM")

    def plan(self, engine: lowland.Engine, batch: Any) -> lowland.Plan:
        """One gradient here gives the direction; two displaced ones are averaged."""
        here = yield lowland.Probe(batch)
        far = self.ascent(engine, here.grad)
        near = vec.scale(far, self.ratio)
        a, b = yield lowland.Probe(batch, at=far), lowland.Probe(batch, at=near)
        return here.loss, vec.lerp(a.grad, b.grad, 0.5)


METHODS["two-radii"] = TwoRadii  # one line, and it can be written as text: "two-radii:rho=0.1,ratio=0.25"


def loss_fn(model: nn.Module, batch: Any) -> Tensor:
    inputs, targets = batch
    return nn.functional.mse_loss(model(inputs), targets)


def main(steps: int = 100, text: str = "two-radii:rho=0.1") -> list[float]:
    """Train a small regression; return the loss of every step."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 32), nn.Tanh(), nn.Linear(32, 1))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    engine = lowland.Engine(make(text), model, optimizer, loss_fn)
    inputs = torch.randn(256, 8)
    targets = inputs[:, :1] * inputs[:, 1:2]
    losses = []
    for _ in range(steps):
        losses.append(float(engine.backward((inputs, targets))))
        optimizer.step()
        optimizer.zero_grad()

    cost = engine.cost  # counted while the plan ran, not typed in
    print(engine.method)
    print(f"loss {losses[0]:.3f} at the start, {losses[-1]:.3f} after {steps} steps")
    print(f"{cost.gradients / steps:g} gradients per step, {cost.sequential / steps:g} one after the other")
    return losses


if __name__ == "__main__":
    main()
