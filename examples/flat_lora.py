"""Flat-LoRA without a copy of the frozen weights: `python examples/flat_lora.py`.

W gets noise of the size rho / sqrt(n) * |row of W + s B A|, which grows over the training. It is added to the layer's
output and drawn again in backward, so W never moves and no copy is kept. Li et al., ICML 2025, arXiv 2409.14396.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

import lowland


class LoRALinear(nn.Module):
    """``y = x W^T + s x A^T B^T`` with W frozen, and in training with noise in W."""

    def __init__(self, base: nn.Linear, rank: int, seed: int, rho: float = 0.05, s: float = 2.0) -> None:
        super().__init__()
        self.base, self.s, self.rho, self.seed = base.requires_grad_(False), s, rho, seed
        self.A = nn.Parameter(torch.randn(rank, base.in_features) / math.sqrt(base.in_features))
        self.B = nn.Parameter(torch.zeros(base.out_features, rank))
        self.step, self.progress = 0, 0.0  # of the training

    def forward(self, x: Tensor) -> Tensor:
        y = self.base(x) + self.s * x @ self.A.T @ self.B.T
        return y + Noise.apply(x, self.deviations(), self.seed + 7919 * self.step) if self.training else y

    @torch.no_grad()
    def deviations(self) -> Tensor:
        """The standard deviation of each row's noise, shape (rows,), from |W_i + s B_i A|^2, multiplied out."""
        W, A, B, s = self.base.weight, self.A, self.B, self.s
        squares = W.square().sum(1) + 2 * s * ((W @ A.T) * B).sum(1) + s**2 * ((B @ (A @ A.T)) * B).sum(1)
        growth = (1 - math.cos(math.pi * self.progress)) / 2
        return growth * self.rho / math.sqrt(W.shape[1]) * squares.clamp_min(0).sqrt()


class Noise(torch.autograd.Function):
    """``x E^T`` with the noise E of a seed, the same in all passes of a step and on all ranks; E is not kept."""

    @staticmethod
    def draw(deviations: Tensor, width: int, seed: int) -> Tensor:
        generator = torch.Generator(deviations.device).manual_seed(seed)
        noise = torch.empty(len(deviations), width, dtype=deviations.dtype, device=deviations.device)
        return noise.normal_(generator=generator) * deviations[:, None]

    @staticmethod
    def forward(ctx: Any, x: Tensor, deviations: Tensor, seed: int) -> Tensor:
        ctx.save_for_backward(deviations)
        ctx.width, ctx.seed = x.shape[-1], seed
        return x @ Noise.draw(deviations, x.shape[-1], seed).T

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        return grad @ Noise.draw(*ctx.saved_tensors, ctx.width, ctx.seed), None, None


def main(steps: int = 60, method: lowland.Method | None = None) -> list[float]:
    """Train the adapters of a frozen network by Flat-LoRA, or by it and another method; return the losses."""
    torch.manual_seed(0)
    layers = [LoRALinear(nn.Linear(32, 32), rank=4, seed=k) for k in range(3)]
    model = nn.Sequential(layers[0], nn.Tanh(), layers[1], nn.Tanh(), layers[2])
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    engine = lowland.Engine(method or lowland.Plain(), model, optimizer, lambda m, b: (m(b[0]) - b[1]).square().mean(1))
    x, losses = torch.randn(128, 32), []
    for step in range(steps):
        for layer in layers:
            layer.step, layer.progress = step, step / steps
        losses.append(float(engine.backward((x, x.roll(1, dims=1)))))
        optimizer.step()
        optimizer.zero_grad()
    print(f"loss {losses[0]:.3f} at the start, {losses[-1]:.3f} after {steps} steps")
    return losses


if __name__ == "__main__":
    main()
