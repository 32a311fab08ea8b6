"""timm's model, optimizer, schedule, clipping and average with SAM: `python examples/with_timm.py`.

The loop is timm's, but for one line: timm's NativeScaler runs backward itself, so it is replaced by the engine.
"""

from __future__ import annotations

from typing import Any

import torch
from timm.models.vision_transformer import VisionTransformer
from timm.optim import create_optimizer_v2
from timm.scheduler import CosineLRScheduler
from timm.utils import ModelEmaV3, dispatch_clip_grad
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import lowland


def images(count: int, seed: int) -> TensorDataset:
    """Noise that is a little brighter in one color, which is the class."""
    generator = torch.Generator().manual_seed(seed)
    targets = torch.randint(0, 3, (count,), generator=generator)
    inputs = torch.randn(count, 3, 16, 16, generator=generator)
    return TensorDataset(inputs + 0.3 * nn.functional.one_hot(targets, 3)[:, :, None, None], targets)


def loss_fn(model: nn.Module, batch: Any) -> Tensor:
    return nn.functional.cross_entropy(model(batch[0]), batch[1], reduction="none")


def main(epochs: int = 4) -> float:
    """Train and return the test accuracy of the averaged model."""
    torch.manual_seed(0)
    model = VisionTransformer(img_size=16, patch_size=4, num_classes=3, embed_dim=48, depth=2, num_heads=4)
    optimizer = create_optimizer_v2(model, opt="adamw", lr=2e-3, weight_decay=0.05)
    loader = DataLoader(images(1024, seed=1), batch_size=32)
    scheduler = CosineLRScheduler(optimizer, t_initial=epochs * len(loader), warmup_t=10, t_in_epochs=False)
    average = ModelEmaV3(model, decay=0.9)
    engine = lowland.Engine(lowland.SAM(rho=0.05), model, optimizer, loss_fn)
    for step, batch in enumerate(batch for _ in range(epochs) for batch in loader):
        engine.backward(batch)  # instead of loss_scaler(loss, optimizer, …)
        dispatch_clip_grad(model.parameters(), value=1.0, mode="norm")
        optimizer.step()
        optimizer.zero_grad()
        average.update(model, step=step)
        scheduler.step_update(step + 1)
    inputs, targets = images(512, seed=2).tensors
    with torch.no_grad():
        accuracy = float((average.module.eval()(inputs).argmax(1) == targets).float().mean())
    print(f"SAM, {engine.step} steps, test accuracy of the averaged model {accuracy:.3f}")
    return accuracy


if __name__ == "__main__":
    main()
