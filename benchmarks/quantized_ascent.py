"""What is left of SAM's perturbation when it is added before the weights are quantized, and when it is added after.

For models that quantization-aware training has trained on the built-in digits, it prints for each radius, as means over
seeds and batches:

- codes changed: the fraction of quantized weights whose integer code differs at the latent weights ``w + e``;
- length left: the norm of ``Q(w + e) - Q(w)``, relative to the norm of ``e``, over the quantized weights;
- cosine: the cosine of the angle between these two;
- rise, latent and rise, quantized: the rise of the batch's loss at ``Q(w + e)`` and at ``Q(w) + e``;
- linear: the rise ``rho ||g||`` that the gradient predicts.

``e = rho g / ||g||`` is SAM's perturbation, with the straight-through gradient ``g`` at the quantized weights.
BatchNorm uses the statistics of the batch. ``python benchmarks/quantized_ascent.py`` prints the table.
"""

from __future__ import annotations

from argparse import ArgumentParser
from collections.abc import Sequence
from itertools import chain, count, islice
from statistics import fmean
from typing import Any

import torch
from torch import Tensor, nn

from lowland.core import vec
from lowland.executors.displacement import displaced
from lowland.lab.budget import Budget
from lowland.lab.config import RunConfig
from lowland.lab.quantize import FakeQuantize, scales, targets
from lowland.lab.tasks.qat import Qat
from lowland.lab.training.prepare import loader_of
from lowland.lab.training.trainer import Trainer
from lowland.methods import make

RADII = (0.01, 0.05, 0.2)
NAMES = ("codes changed, %", "length left", "cosine", "rise, latent", "rise, quantized", "linear")


def trained(task: Qat, model: str, seed: int, steps: int) -> tuple[nn.Module, list[Any]]:
    """A model after plain training with its recipe, in training mode, and batches of the training part."""
    recipe = task.recipe(model)
    config = RunConfig(
        task=task, model=model, method="plain", seed=seed, recipe=recipe, budget=Budget(limit=steps), device="cpu"
    )
    loader, trainer = loader_of(config), Trainer(config, make("plain"))
    batches = chain.from_iterable(loader.batches(epoch) for epoch in count())
    for step, batch in enumerate(islice(batches, steps)):
        trainer.step(batch, step / steps)
    return trainer.model, list(islice(loader.batches(10**6), 5))


def codes(model: nn.Module, bits: int) -> tuple[Tensor, Tensor]:
    """The integer codes of all quantized weights, and their values, each as one vector."""
    found, values = [], []
    for target in targets(model):
        latent = target.module.parametrizations["weight"].original  # type: ignore[index, union-attr]
        scale = scales(latent, bits)  # type: ignore[arg-type]
        weight = target.tensor.detach()
        found.append((weight / scale.view(-1, *[1] * (weight.ndim - 1))).round().flatten())
        values.append(weight.double().flatten())
    return torch.cat(found), torch.cat(values)


def measure(task: Qat, model: nn.Module, batch: Any, rho: float) -> list[float]:
    """One row of the table for one batch."""
    params, names = zip(*((p, name) for name, p in model.named_parameters() if p.requires_grad), strict=True)
    loss = task.loss(model, batch).mean()
    grads = list(torch.autograd.grad(loss, params))
    norm = float(vec.norm(grads))
    at = vec.scale(grads, rho / norm)
    own = torch.cat([e.double().flatten() for e, name in zip(at, names, strict=True) if name.endswith("original")])
    before, values = codes(model, task.bits)
    rises = []
    for displace in ("latent", "quantized"):
        set_displace(model, displace)
        with displaced(list(params), list(at)), torch.no_grad():
            rises.append(float(task.loss(model, batch).mean()) - float(loss.detach()))
            if displace == "latent":
                after, moved = codes(model, task.bits)
    change = moved - values
    changed = 100 * float((after != before).double().mean())
    cosine = float(change @ own / (change.norm() * own.norm()).clamp_min(1e-30))
    return [changed, float(change.norm() / own.norm()), cosine, *rises, rho * norm]


def set_displace(model: nn.Module, displace: str) -> None:
    """Let all quantizers of a model add displacements before or after the quantization."""
    for module in model.modules():
        if isinstance(module, FakeQuantize):
            module.displace = displace  # type: ignore[assignment]


def table(model: str, seeds: Sequence[int], steps: int) -> list[str]:
    """The lines of the table for one model, as Markdown."""
    lines = []
    for bits in (4, 8):
        task = Qat(bits=bits)
        nets = [trained(task, model, seed, steps) for seed in seeds]
        for rho in RADII:
            rows = [measure(task, net, batch, rho) for net, batches in nets for batch in batches]
            shown = " | ".join(f"{fmean(column):.3g}" for column in zip(*rows, strict=True))
            lines.append(f"| {model} | {bits} | {rho:g} | {shown} |")
    return lines


def main() -> None:
    """Print the table."""
    parser = ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--models", nargs="+", default=["mlp", "convnet"])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=400)
    given = parser.parse_args()
    print(f"| model | bits | rho | {' | '.join(NAMES)} |")
    print(f"| --- |{' ---: |' * (len(NAMES) + 2)}")
    for model in given.models:
        for line in table(model, range(given.seeds), given.steps):
            print(line, flush=True)


if __name__ == "__main__":
    main()
