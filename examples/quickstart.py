"""SAM in a plain training loop on scikit-learn's digits: `python examples/quickstart.py`.

Against training without lowland, one line differs: `engine.backward(batch)` instead of `loss.backward()`.
"""

from __future__ import annotations

from typing import Any

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn

import lowland


def loss_fn(model: nn.Module, batch: Any) -> Tensor:
    inputs, targets = batch
    return nn.functional.cross_entropy(model(inputs), targets, reduction="none")  # (B,)


def data(tested: int = 360) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    digits = load_digits()
    inputs = torch.tensor(digits.data, dtype=torch.float32) / 16
    targets = torch.tensor(digits.target)
    shuffled = torch.randperm(len(targets), generator=torch.Generator().manual_seed(0))
    test, train = shuffled[:tested], shuffled[tested:]
    return (inputs[train], targets[train]), (inputs[test], targets[test])


def main(epochs: int = 20, batch_size: int = 64) -> float:
    """Train and return the test accuracy."""
    torch.manual_seed(0)
    (inputs, targets), (test_inputs, test_targets) = data()
    model = nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 10))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=5e-4)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=epochs)
    engine = lowland.Engine(lowland.SAM(rho=0.05), model, optimizer, loss_fn)

    for epoch in range(epochs):
        total = torch.zeros(())
        for index in torch.randperm(len(targets)).split(batch_size):
            loss = engine.backward((inputs[index], targets[index]))
            optimizer.step()
            optimizer.zero_grad()
            total += loss * len(index)
        scheduler.step()
        print(f"epoch {epoch + 1:2d}  training loss {total / len(targets):.4f}")

    with torch.no_grad():
        accuracy = float((model(test_inputs).argmax(1) == test_targets).float().mean())
    cost = engine.cost
    print(f"test accuracy {accuracy:.3f} at {cost.gradients / cost.steps:.2f} gradients per step")
    return accuracy


if __name__ == "__main__":
    main()
