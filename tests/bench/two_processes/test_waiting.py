from __future__ import annotations

import time
from typing import Any

import pytest
import torch
import torch.distributed as dist
from ranks import on_ranks
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

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


@pytest.fixture(autouse=True)
def _anew() -> None:
    waiting.taken()


def _batch() -> tuple[Tensor, Tensor]:
    return torch.randn(8, 4), torch.randint(3, (8,))


def test_the_end_of_backward_is_measured_and_backward_is_not() -> None:
    model = Slow(backward=0.5, end=0.05)
    waiting.watched(model, _batch()).backward()  # type: ignore[no-untyped-call]
    assert model.ended == 1
    (waited,) = waiting.taken()
    assert 0.05 <= waited < 0.5
    assert waiting.taken() == []


def test_every_backward_is_noted() -> None:
    model = Slow(0.0, 0.02)
    for _ in range(3):
        waiting.watched(model, _batch()).backward()  # type: ignore[no-untyped-call]
    waits = waiting.taken()
    assert len(waits) == 3
    assert min(waits) >= 0.02


def test_what_a_displaced_pass_waits_is_kept() -> None:
    # After a displaced pass the engine restores the Python state that a loss function reaches.
    model = Slow(0.0, 0.02)
    engine = lowland.Engine(lowland.SAM(), model, torch.optim.SGD(model.parameters(), lr=0.1), waiting.watched)
    engine.backward(_batch())
    waits = waiting.taken()
    assert len(waits) == 2
    assert min(waits) >= 0.02


def test_blocking_all_reduces_are_measured_and_the_function_is_put_back(monkeypatch: pytest.MonkeyPatch) -> None:
    def slow(x: Tensor, **options: Any) -> str:
        time.sleep(0.05)
        if options:
            raise RuntimeError("broken")
        return f"reduced {x}"

    monkeypatch.setattr(dist, "all_reduce", slow)
    with waiting.all_reduces_timed():
        assert dist.all_reduce(torch.tensor(1)) == "reduced 1"
        with pytest.raises(RuntimeError, match="broken"):
            dist.all_reduce(torch.tensor(1), group=None)
    waits = waiting.taken()
    assert len(waits) == 2  # the one that failed, too
    assert min(waits) >= 0.05
    assert dist.all_reduce is slow


def beside_a_late_rank() -> list[list[float]]:
    """The waits of a plain backward, for which rank 1 is late, and of a step of SAM."""
    model = DistributedDataParallel(nn.Linear(4, 3))
    loss = waiting.watched(model, _batch())
    if dist.get_rank() == 1:
        time.sleep(0.5)
    waiting.taken()
    loss.backward()  # type: ignore[no-untyped-call]
    plain = waiting.taken()
    engine = lowland.Engine(lowland.SAM(), model, torch.optim.SGD(model.parameters(), lr=0.1), waiting.watched)
    with waiting.all_reduces_timed():
        engine.backward(_batch())
    return [plain, waiting.taken()]


def test_ddp_waits_within_what_is_measured() -> None:
    (early, sam), (late, _) = on_ranks(2, beside_a_late_rank)
    assert len(early) == len(late) == 1
    assert early[0] > 0.3 > late[0]
    assert len(sam) == 2 + 1  # an all-reduce in every pass, and one of the engine's few numbers
