"""Accelerate and SAMPa: `python examples/with_accelerate.py`.

`torchrun --standalone --nproc-per-node 2 examples/with_accelerate.py` trains the same on two processes. The
loop differs in one line, and the loss is not divided by the number of micro-batches.
"""

from __future__ import annotations

from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import lowland
from lowland.integrations.accelerate import Sharpness


def rings(count: int, seed: int) -> TensorDataset:
    """Points on three rings around zero, which a network tells apart."""
    generator = torch.Generator().manual_seed(seed)
    targets = torch.randint(0, 3, (count,), generator=generator)
    points = torch.randn(count, 2, generator=generator)
    radii = 1.0 + targets[:, None] + 0.1 * torch.randn(count, 1, generator=generator)
    return TensorDataset(radii * points / points.norm(dim=1, keepdim=True), targets)


def loss_fn(model: nn.Module, batch: Any) -> Tensor:
    inputs, targets = batch
    return nn.functional.cross_entropy(model(inputs), targets, reduction="none")  # one loss per example


def main(epochs: int = 10) -> float:
    """Train and return the test accuracy."""
    torch.manual_seed(0)
    accelerator = Accelerator(gradient_accumulation_steps=2, cpu=not torch.cuda.is_available())
    net: Any = nn.Sequential(nn.Linear(2, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 3))
    base = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9)
    batches = DataLoader(rings(1024, seed=1), batch_size=32 // accelerator.num_processes)
    model, optimizer, loader = accelerator.prepare(net, base, batches)
    sharp = Sharpness(accelerator, lowland.SAMPa(rho=0.1), model, optimizer, loss_fn)
    for _ in range(epochs):
        for batch in loader:
            with accelerator.accumulate(model):
                sharp.backward(batch)  # instead of accelerator.backward(loss)
                if accelerator.sync_gradients:
                    accelerator.clip_grad_norm_(model.parameters(), 5.0)
                optimizer.step()
                optimizer.zero_grad()
    inputs, targets = (t.to(accelerator.device) for t in rings(512, seed=2).tensors)
    accuracy = float((model(inputs).argmax(1) == targets).float().mean())
    norm = float(nn.utils.parameters_to_vector(model.parameters()).detach().norm())
    accelerator.print(f"SAMPa, {sharp.engine.step} steps, test accuracy {accuracy:.3f}, norm of the weights {norm:.4f}")
    accelerator.end_training()  # ends the process group
    return accuracy


if __name__ == "__main__":
    main()
