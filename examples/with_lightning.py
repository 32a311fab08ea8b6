"""Lightning and SAM: `python examples/with_lightning.py`.

`torchrun --standalone --nproc-per-node 2 examples/with_lightning.py` trains on two processes. The method is a callback.
"""

from __future__ import annotations

import os
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import lowland
from lowland.integrations.lightning import Sharpness

PROCESSES = int(os.environ.get("WORLD_SIZE", "1"))


def rings(count: int, seed: int) -> TensorDataset:
    generator = torch.Generator().manual_seed(seed)
    targets = torch.randint(0, 3, (count,), generator=generator)
    points = torch.randn(count, 2, generator=generator)
    radii = 1.0 + targets[:, None] + 0.1 * torch.randn(count, 1, generator=generator)
    return TensorDataset(radii * points / points.norm(dim=1, keepdim=True), targets)


class Net(LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(2, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 3))

    def training_step(self, batch: Any, index: int) -> Tensor:
        loss = nn.functional.cross_entropy(self.layers(batch[0]), batch[1])
        self.log("loss", loss)  # once a step, although this function runs once per pass
        return loss

    def test_step(self, batch: Any, index: int) -> None:
        self.log("accuracy", (self.layers(batch[0]).argmax(1) == batch[1]).float().mean())

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1, momentum=0.9)


def main(epochs: int = 10) -> float:
    torch.manual_seed(0)
    quiet = dict.fromkeys(("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"), False)
    sharpness, model = Sharpness(lowland.SAM(rho=0.05)), Net()
    trainer = Trainer(max_epochs=epochs, devices=PROCESSES, callbacks=[sharpness], gradient_clip_val=5.0, **quiet)
    trainer.fit(model, DataLoader(rings(1024, seed=1), batch_size=64 // PROCESSES))
    (found,) = trainer.test(model, DataLoader(rings(512, seed=2), batch_size=256), verbose=False)
    if trainer.is_global_zero:
        print(f"SAM, {trainer.global_step} steps, test accuracy {found['accuracy']:.3f}")
    return found["accuracy"]


if __name__ == "__main__":
    main()
