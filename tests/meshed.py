"""Engines on a mesh of two probe groups, for tests that run on two ranks."""

from __future__ import annotations

from typing import Any

from problems import batch, loss_fn, sgd
from torch import nn
from torch.distributed.device_mesh import init_device_mesh

import lowland


def engine_on(method: lowland.Method, model: nn.Module, *, ranks: bool = True, **options: Any) -> lowland.Engine:
    """An engine whose exchange has small buckets, so that some leave early."""
    mesh = init_device_mesh("cpu", (2,), mesh_dim_names=("probe",)) if ranks else None
    engine = lowland.Engine(method, model, sgd(model), options.pop("loss_fn", loss_fn), mesh=mesh, **options)
    if ranks:
        engine.executor.inner.bucket = 256  # type: ignore[attr-defined]
    return engine


def steps(engine: lowland.Engine, count: int, first: int = 0, sizes: tuple[int, ...] = (8,)) -> None:
    for step in range(first, first + count):
        engine.backward(batch(step, size=sizes[step % len(sizes)]))
        nn.utils.clip_grad_norm_(engine.params, 0.5)
        engine.optimizer.step()
        engine.optimizer.zero_grad()
