"""Old rules and lowland on two DDP ranks, each of which reads half of every batch. Each function runs on a rank."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from official.files import Array, examples, recorded
from official.follow import model_of
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 - the name everybody knows it by
from torch.nn.parallel import DistributedDataParallel

import lowland
from migrated import msam
from migrated.page import weights

SGD = {"lr": 0.1, "momentum": 0.9, "weight_decay": 5e-4}
STEPS = 20


def halves(steps: int = STEPS) -> list[tuple[Tensor, Tensor]]:
    """This rank's batches of 8."""
    start, run = 8 * torch.distributed.get_rank(), recorded("sam_mlp_sgd")
    return [examples(run.indices(step)[start : start + 8])[:2] for step in range(steps)]


def replica() -> DistributedDataParallel:
    return DistributedDataParallel(model_of(recorded("sam_mlp_sgd")))


def followed(method: str, decay: float = SGD["weight_decay"]) -> Array:
    """The weights after every step of lowland's method, (steps + 1, parameters)."""
    model = replica()
    optimizer = torch.optim.SGD(model.parameters(), **{**SGD, "weight_decay": decay})
    engine = lowland.Engine(eval(method, vars(lowland).copy()), model, optimizer, losses)
    return path(model, lambda batch: (engine.backward(batch), optimizer.step(), optimizer.zero_grad()))


def by_msam(rho: float) -> Array:
    """The weights after every step of the Momentum-SAM rule, where they are displaced: the first and the last count."""
    model = replica()
    optimizer = msam.MSAM(model.parameters(), lr=0.1, momentum=0.9, weight_decay=0.0, rho=rho)

    def step(batch: Any) -> None:
        losses(model, batch).mean().backward()
        optimizer.step()
        optimizer.zero_grad()

    path(model, step)
    optimizer.move_back_from_momentumAscent()
    return weights(model)


def by_pytorch_optimizer() -> Array:
    """The weights after every step of pytorch_optimizer's GSAM, (steps + 1, parameters)."""
    from pytorch_optimizer import GSAM, ProportionScheduler

    model = replica()
    base = torch.optim.SGD(model.parameters(), **SGD)
    constant = torch.optim.lr_scheduler.ConstantLR(base, factor=1.0)
    radius = ProportionScheduler(constant, max_lr=0.1, min_lr=0.0, max_value=0.1, min_value=0.1)
    optimizer = GSAM(model.parameters(), base, model, rho_scheduler=radius, alpha=0.4)

    def step(batch: Any) -> None:
        optimizer.set_closure(F.cross_entropy, *batch)
        optimizer.step()

    return path(model, step)


def first_gradients() -> dict[str, Tensor]:
    """The gradient of one backward, by what was inside ``no_sync``: "backward", or "both" forward and backward."""
    found = {}
    for inside in ("backward", "both"):
        model = replica()
        (batch,) = halves(1)
        if inside == "backward":
            loss = losses(model, batch).mean()
            with model.no_sync():
                loss.backward()
        else:
            with model.no_sync():
                losses(model, batch).mean().backward()
        found[inside] = torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])
    return found


def losses(model: nn.Module, batch: Any) -> Tensor:
    return F.cross_entropy(model(batch[0]), batch[1], reduction="none")


def path(model: nn.Module, step: Callable[[Any], Any]) -> Array:
    found = [torch.from_numpy(weights(model))]
    for batch in halves():
        step(batch)
        found.append(torch.from_numpy(weights(model)))
    return torch.stack(found).numpy()
