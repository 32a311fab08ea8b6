from __future__ import annotations

import time
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn

import lowland
from lowland.bench.two_processes import waiting


class Slow(nn.Module):
    """A linear layer, whose backward takes a while, and waits at its end as DistributedDataParallel does."""

    def __init__(self, backward: float, end: float) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 3)
        self.layer.weight.register_post_accumulate_grad_hook(self._last)  # type: ignore[no-untyped-call]
        self.backward, self.end, self.ended = backward, end, 0

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x)  # type: ignore[no-any-return]

    def _last(self, weight: Tensor) -> None:
        time.sleep(self.backward)
        torch.autograd.Variable._execution_engine.queue_callback(self._wait)

    def _wait(self) -> None:
        time.sleep(self.end)
        self.ended += 1


def _batch() -> tuple[Tensor, Tensor]:
    return torch.randn(8, 4), torch.randint(3, (8,))


def test_the_end_of_backward_is_measured_and_backward_is_not() -> None:
    model, before = Slow(backward=0.5, end=0.05), waiting.waited()
    waiting.watched(model, _batch()).backward()  # type: ignore[no-untyped-call]
    assert model.ended == 1
    assert 0.05 <= waiting.waited() - before < 0.5


def test_every_backward_adds_to_it() -> None:
    model, before = Slow(0.0, 0.02), waiting.waited()
    for _ in range(3):
        waiting.watched(model, _batch()).backward()  # type: ignore[no-untyped-call]
    assert waiting.waited() - before >= 3 * 0.02


def test_what_a_displaced_pass_waits_is_kept() -> None:
    # After a displaced pass the engine restores the Python state that a loss function reaches.
    model = Slow(0.0, 0.02)
    engine = lowland.Engine(lowland.SAM(), model, torch.optim.SGD(model.parameters(), lr=0.1), waiting.watched)
    before = waiting.waited()
    engine.backward(_batch())
    assert waiting.waited() - before >= 2 * 0.02


def test_blocking_all_reduces_are_measured_and_the_function_is_put_back(monkeypatch: pytest.MonkeyPatch) -> None:
    def slow(x: Tensor, **options: Any) -> str:
        time.sleep(0.05)
        if options:
            raise RuntimeError("broken")
        return f"reduced {x}"

    monkeypatch.setattr(dist, "all_reduce", slow)
    before = waiting.waited()
    with waiting.all_reduces_timed():
        assert dist.all_reduce(torch.tensor(1)) == "reduced 1"
        assert waiting.waited() - before >= 0.05
        with pytest.raises(RuntimeError, match="broken"):
            dist.all_reduce(torch.tensor(1), group=None)
    assert waiting.waited() - before >= 0.1
    assert dist.all_reduce is slow
