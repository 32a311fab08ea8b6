"""What the integrations are compared with: each method's update in plain torch, written from its paper, in float64.

Nothing here imports lowland or a framework. A step is given as micro-batches; `loss` says what they all cost together.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

RHO, LAM, PERIOD, ALPHA, CUTS = 0.05, 0.2, 2, 0.7, 2
Vec = list[Tensor]


def norm(v: Vec) -> Tensor:
    return torch.sqrt(sum(((x * x).sum() for x in v), torch.zeros((), dtype=torch.float64)))


class Trajectory:
    """One method at work: `direction(batch)` is the loss and what the base optimizer is handed.

    `parts(batch)` are the pieces of mSAM, each with its share of the loss.
    """

    def __init__(
        self,
        kind: str,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        loss: Callable[[nn.Module, Any], Tensor],
        parts: Callable[[Any], Sequence[tuple[Any, float]]] | None = None,
        period: int = PERIOD,
    ) -> None:
        self.direction = getattr(self, kind)
        self.model, self.optimizer, self.loss, self.parts, self.period = model, optimizer, loss, parts, period
        self.params = [p for p in model.parameters() if p.requires_grad]
        self.steps = 0
        self.kept: Any = None

    def gradient(self, batch: Any, at: Vec | None = None) -> tuple[Tensor, Vec]:
        """Loss and gradient at `w + at`."""
        before = [p.detach().clone() for p in self.params]
        with torch.no_grad():
            for p, e in zip(self.params, at or [], strict=False):
                p.add_(e)
        loss = self.loss(self.model, batch)
        grads = torch.autograd.grad(loss, self.params, allow_unused=True)
        with torch.no_grad():
            for p, b in zip(self.params, before, strict=True):
                p.copy_(b)
        filled = [torch.zeros_like(p) if g is None else g for g, p in zip(grads, self.params, strict=True)]
        return loss.detach(), filled

    def up(self, g: Vec) -> Vec:
        n = norm(g)
        return [RHO * x / n for x in g]

    def plain(self, batch: Any) -> tuple[Tensor, Vec]:
        return self.gradient(batch)

    def sam(self, batch: Any) -> tuple[Tensor, Vec]:
        loss, g = self.gradient(batch)
        return loss, self.gradient(batch, self.up(g))[1]

    def looksam(self, batch: Any) -> tuple[Tensor, Vec]:
        loss, g = self.gradient(batch)
        if self.steps % self.period:
            n = norm(g)
            return loss, [a + ALPHA * n * v for a, v in zip(g, self.kept, strict=True)]
        g_s = self.gradient(batch, self.up(g))[1]
        c = sum((a * b).sum() for a, b in zip(g, g_s, strict=True)) / norm(g) ** 2
        g_v = [a - c * b for a, b in zip(g_s, g, strict=True)]
        n = norm(g_v)
        self.kept = [x / n for x in g_v]
        return loss, g_s

    def sampa(self, batch: Any) -> tuple[Tensor, Vec]:
        if self.kept is None:
            loss, g_y = self.gradient(batch)
            self.kept = (g_y, batch)
            return loss, g_y
        g_y, held = self.kept
        tilde = self.gradient(held, self.up(g_y))[1]
        loss, new = self.gradient(batch, self.preview(g_y))
        self.kept = (new, batch)
        return loss, [(1 - LAM) * a + LAM * b for a, b in zip(tilde, new, strict=True)]

    def msam(self, batch: Any) -> tuple[Tensor, Vec]:
        """`loss` of a piece is its share of the step's loss; its length does not matter to the perturbation."""
        loss, d = torch.zeros((), dtype=torch.float64), [torch.zeros_like(p) for p in self.params]
        assert self.parts is not None
        for piece, share in self.parts(batch):
            here, g = self.gradient(piece)
            g = self.gradient(piece, self.up(g))[1]
            loss, d = loss + share * here, [a + share * b for a, b in zip(d, g, strict=True)]
        return loss, d

    def preview(self, g: Vec) -> Vec:
        """How far the base optimizer would go with `g`: its step is taken, then undone."""
        before = [p.detach().clone() for p in self.params]
        state, grads = copy.deepcopy(self.optimizer.state_dict()), [p.grad for p in self.params]
        for p, x in zip(self.params, g, strict=True):
            p.grad = x.clone()
        step = type(self.optimizer).step
        getattr(step, "__wrapped__", step)(self.optimizer)
        moved = [p.detach() - b for p, b in zip(self.params, before, strict=True)]
        with torch.no_grad():
            for p, b, h in zip(self.params, before, grads, strict=True):
                p.copy_(b)
                p.grad = h
        self.optimizer.load_state_dict(state)
        if not state["state"]:
            self.optimizer.state.clear()
        return moved

    def backward(self, batch: Any, scale: float = 1.0) -> Tensor:
        """Add the direction to `.grad`, as the engine does."""
        loss, d = self.direction(batch)
        for p, x in zip(self.params, d, strict=True):
            p.grad = x * scale if p.grad is None else p.grad + x * scale
        self.steps += 1
        return loss


def sgd(model: nn.Module, lr: float = 0.05) -> torch.optim.Optimizer:
    return torch.optim.SGD(model.parameters(), lr=lr, momentum=0.9, weight_decay=1e-2)


def adamw(model: nn.Module, lr: float = 0.01) -> torch.optim.Optimizer:
    return torch.optim.AdamW(model.parameters(), lr=lr, weight_decay=1e-2)


def apart(a: nn.Module, b: nn.Module) -> float:
    """The largest difference of two models' weights."""
    pairs = zip(a.parameters(), b.parameters(), strict=True)
    return max(float((x.detach().double() - y.detach().double()).abs().max()) for x, y in pairs)
