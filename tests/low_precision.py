"""Models, batches and trainings in bf16 and fp16, for tests."""

from __future__ import annotations

import pytest
import torch
from problems import batch, weights
from torch import Tensor, nn

import lowland

LOW = [torch.bfloat16, torch.float16]
every_dtype = pytest.mark.parametrize("dtype", LOW, ids=str)


def inputs(step: int, dtype: torch.dtype) -> tuple[Tensor, ...]:
    return batch(step, dtype=dtype)


def trained(engine: lowland.Engine, steps: range, dtype: torch.dtype) -> list[Tensor]:
    """The weights after some steps, and the gradients of the last one."""
    for step in steps:
        engine.optimizer.zero_grad()
        engine.backward(inputs(step, dtype))
        engine.optimizer.step()
    return [*weights(engine.model), *[p.grad.clone() for p in engine.params if p.grad is not None]]


def wide_layer(dtype: torch.dtype) -> nn.Module:
    torch.manual_seed(0)
    return nn.Linear(256, 256).to(dtype)


def squares(model: nn.Module, x: Tensor) -> Tensor:
    return model(x).float().square().mean(1)
