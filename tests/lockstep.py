"""Data parallelism without any: replicas in one process, whose readings are averaged by hand."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import nn

import lowland
from lowland.engine.step import drive
from lowland.executors import Local


class Lockstep:
    """One engine per replica; probes of all replicas are answered together.

    Args:
        make: An engine for a model.
        model: What every replica starts from.
        count: How many replicas.
        apart: Which replicas share a gradient that is not synchronized: by default each has its own.
    """

    def __init__(self, make: Any, model: nn.Module, count: int, apart: Sequence[Sequence[int]] | None = None) -> None:
        self.engines: list[lowland.Engine] = [make(copy.deepcopy(model)) for _ in range(count)]
        self.apart = apart or [[r] for r in range(count)]
        self.everyone = [list(range(count))]
        self.told: list[torch.Tensor] = []  # the losses of the probes asked last, one tensor for each replica
        for number, engine in enumerate(self.engines):
            engine.averaged = partial(self._averaged, number)  # type: ignore[method-assign]

    def backward(self, batches: Sequence[Any]) -> list[torch.Tensor]:
        drives = [drive(e, b) for e, b in zip(self.engines, batches, strict=True)]
        asked = [next(d) for d in drives]
        unsynced = False
        while True:
            unsynced |= any(p.grad and not p.sync for p in asked[0])
            readings = [Local().run(e.work, a) for e, a in zip(self.engines, asked, strict=True)]
            self.told = [torch.stack([reading.loss for reading in r]) for r in readings]
            for i, probe in enumerate(asked[0]):
                if probe.grad:
                    _average([r[i].grad for r in readings], self.everyone if probe.sync else self.apart)
            losses, asked = [], []
            for d, r in zip(drives, readings, strict=True):
                try:
                    asked.append(d.send(r))
                except StopIteration as done:
                    losses.append(done.value)
            if losses:
                break
        models = [e.model for e in self.engines]
        if unsynced:
            _average([[p.grad for p in e.params] for e in self.engines], self.everyone)
        stats = [[b for n, b in m.named_buffers() if "running" in n] for m in models]
        _average(stats, self.everyone)
        return losses

    def _averaged(self, number: int, tensor: torch.Tensor) -> torch.Tensor:
        """What a plan's engine.averaged gives for the losses of its last probes."""
        assert torch.equal(tensor, self.told[number])
        return torch.stack(self.told).mean(0)

    def step(self) -> None:
        for e in self.engines:
            e.optimizer.step()
            e.optimizer.zero_grad()


def _average(vectors: list[Any], groups: Sequence[Sequence[int]]) -> None:
    for group in groups:
        for tensors in zip(*(vectors[r] for r in group), strict=True):
            if tensors[0] is not None:
                mean = torch.stack(list(tensors)).mean(0)
                for t in tensors:
                    t.detach().copy_(mean)
