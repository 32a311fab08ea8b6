"""fp16 with GradScaler, gradient accumulation and clipping: `python examples/amp.py`.

The engine knows the scaler; everything after `backward` is what PyTorch's documentation tells you to write.
On a CPU the same code runs in bf16, which needs no scaler.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

import lowland

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
DTYPE = torch.float16 if DEVICE == "cuda" else torch.bfloat16
ACCUMULATE = 4  # calls of backward per optimizer step


def loss_fn(model: nn.Module, batch: Any) -> Tensor:
    inputs, targets = batch
    with torch.autocast(DEVICE, dtype=DTYPE):
        return nn.functional.cross_entropy(model(inputs), targets) / ACCUMULATE


def main(steps: int = 50, width: int = 256) -> list[float]:
    """Train on a made-up task; return the loss of every optimizer step."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(32, width), nn.ReLU(), nn.Linear(width, 4)).to(DEVICE)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    scaler = torch.amp.GradScaler(DEVICE, enabled=DEVICE == "cuda")
    engine = lowland.Engine(lowland.SAM(rho=0.05), model, optimizer, loss_fn, scaler=scaler)

    inputs = torch.randn(4096, 32, device=DEVICE)
    targets = inputs[:, :4].argmax(1)
    losses = []
    for _ in range(steps):
        total = torch.zeros((), device=DEVICE)
        for _ in range(ACCUMULATE):
            index = torch.randint(len(inputs), (64,), device=DEVICE)
            # Adds to .grad as loss.backward() does. Each part is perturbed by its own gradient, which is mSAM;
            # Engine(..., micro_batch=64) perturbs by the gradient of the whole batch and saves memory, too.
            total += engine.backward((inputs[index], targets[index]))
        scaler.unscale_(optimizer)
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()
        losses.append(total)

    values = torch.stack(losses).tolist()
    print(f"loss {values[0]:.3f} at the start, {values[-1]:.3f} after {steps} steps")
    return values


if __name__ == "__main__":
    main()
