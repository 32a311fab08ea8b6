"""Running forward and backward yourself: `python examples/passes.py`.

For losses that do not fit `loss_fn(model, batch)`, and for frameworks whose training step is their own:
`engine.passes(batch)` hands out the passes of one step; inside each, the weights are where the method asks.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

import lowland


def main(steps: int = 50) -> list[float]:
    """Train an autoencoder whose loss has two terms; return its loss at every step."""
    torch.manual_seed(0)
    encoder, decoder = nn.Linear(16, 4), nn.Linear(4, 16)
    model = nn.ModuleList([encoder, decoder])
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    engine = lowland.Engine(lowland.SAMPa(rho=0.1, lam=0.2), model, optimizer)  # no loss_fn

    directions = torch.randn(4, 16)
    losses = []
    for _ in range(steps):
        batch = torch.randn(64, 4) @ directions
        for current in engine.passes(batch):
            with current:
                codes = encoder(current.batch)  # SAMPa's passes have different batches
                error = (decoder(codes) - current.batch).square().mean(1)
                current.backward(error + 1e-3 * codes.abs().sum(1))  # (B,)
        losses.append(float(error.detach().mean()))
        optimizer.step()
        optimizer.zero_grad()
    print(f"reconstruction error {losses[0]:.3f} at the start, {losses[-1]:.3f} after {steps} steps")
    return losses


def closures(steps: int = 50) -> list[float]:
    """Train with code that calls `optimizer.step(closure)`; the method must not keep a batch."""
    torch.manual_seed(0)
    model = nn.Linear(16, 1)
    base = torch.optim.SGD(model.parameters(), lr=0.05)
    optimizer = lowland.ClosureOptimizer(lowland.Engine(lowland.SAM(), model, base))
    inputs = torch.randn(64, 16)
    targets = inputs[:, :1]

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = nn.functional.mse_loss(model(inputs), targets)
        loss.backward()
        return loss

    losses = [optimizer.step(closure).item() for _ in range(steps)]
    print(f"squared error {losses[0]:.3f} at the start, {losses[-1]:.3f} after {steps} steps")
    return losses


if __name__ == "__main__":
    main()
    closures()
