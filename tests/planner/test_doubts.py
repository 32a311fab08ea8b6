"""What a plan cannot know is said, and never shown as known."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lowland import SAM, Engine
from lowland.core.errors import ArgumentError
from lowland.planner import plan
from lowland.planner.asks import read
from lowland.planner.layout import Layout
from lowland.planner.line import fit
from lowland.planner.measure import Own, rates
from lowland.planner.predict import Prediction, predict
from lowland.planner.suitable import undivided
from lowland.planner.why import why


def losses(model: nn.Module, batch: Any) -> Tensor:
    return nn.functional.cross_entropy(model(batch[0]).float(), batch[1], reduction="none")


def engine(dtype: torch.dtype = torch.float32, **options: Any) -> Engine:
    model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3)).to(dtype)
    return Engine(SAM(), model, torch.optim.SGD(model.parameters(), lr=0.1), losses, **options)


def data(dtype: torch.dtype = torch.float32) -> Any:
    return torch.randn(8, 6, dtype=dtype), torch.randint(3, (8,))


def test_what_the_clock_did_not_resolve_has_no_error() -> None:
    assert fit([1, 2], [1.0, 2.0]).error is None
    times: Any = {(k, n): [2e-3] * 3 for k in ("pass", "again", "displaced", "forward", "part") for n in (2, 3, 6)}
    found = rates(Layout(), times, 1e-3)
    assert {line.error for line in found.lines.values()} == {None}
    steps = read(SAM())[:1]
    one = predict(
        Own(method="sam", steps=steps, seconds=(1e-3,)), Layout(), 6, here=found, busy=found, quiet=found, parameters=1
    )
    assert one.error is None


def test_bytes_and_memory_of_other_types_are_not_modeled() -> None:
    found = plan(engine(torch.bfloat16), data(torch.bfloat16), ["sam"], seconds=0.01)
    assert {(p.bytes, p.memory) for p in found.predictions} == {(None, None)}
    assert "Bytes and memory are not modeled, because not all weights are float32" in str(found)
    assert any("not modeled" in note for note in found.to_json()["notes"])
    assert not any("not modeled" in note for note in plan(engine(), data(), ["sam"], seconds=0.01).notes)


def test_micro_batches_of_the_training_are_said() -> None:
    found = plan(engine(micro_batch=4, rng="shared"), data(), ["sam"], seconds=0.01)
    assert "micro-batches of at most 4 examples are not planned" in str(found)


def test_the_parts_of_a_sentence_add_up() -> None:
    one = Prediction(
        method="late", layout=Layout(probe=2), examples=64, seconds=5.37e-3, error=0, passes=1.31e-3, busy=-0.23e-3,
        exchange=3.22e-3, own=1.07e-3, bytes=0,
    )  # fmt: skip
    assert "5.37 ms = passes 1.31 − passes that are faster there than alone 0.23 + exchanges 3.22 + " in why(one, [one])


class Counting(torch.optim.SGD):
    """An optimizer with an attribute of its own, which torch's copies lose."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.count, self.firsts = 0, [self.param_groups[0]["params"][0]]

    def step(self, closure: Any = None) -> Any:  # type: ignore[override]
        """Count, and step."""
        self.count += 1
        assert self.firsts[0] is self.param_groups[0]["params"][0]
        return super().step(closure)


def test_an_optimizer_keeps_its_own_attributes() -> None:
    model = nn.Linear(6, 3)
    optimizer = Counting(model.parameters(), lr=0.1)
    assert plan(Engine(SAM(), model, optimizer, losses), data(), ["sam"], seconds=0.01).predictions
    assert optimizer.count == 0


def test_the_remedy_divides() -> None:
    assert "2 ranks divide neither the 2 examples, of which every rank needs two or more" in undivided([2], [2])
    assert undivided([2], [2]).endswith("a batch of 4 examples or SAMPa")
    assert undivided([3], [64]).endswith("take another number of processes, a batch of 66 examples")


def test_seconds_are_finite() -> None:
    with pytest.raises(ArgumentError, match="seconds must be a number above 0"):
        plan(engine(), data(), ["sam"], seconds=float("inf"))


@pytest.mark.parametrize("size", [5, 6, 7])
def test_batch_normalization_gets_no_micro_batches_of_one_example(size: int) -> None:
    def found(*layers: nn.Module) -> set[int | None]:
        model = nn.Sequential(nn.Linear(6, 8), *layers, nn.Linear(8, 3))
        made = Engine(SAM(), model, torch.optim.SGD(model.parameters(), lr=0.1), losses)
        batch = torch.randn(size, 6), torch.randint(3, (size,))
        return {p.layout.micro_batch for p in plan(made, batch, ["sam"], seconds=0.01).predictions}

    assert found(nn.BatchNorm1d(8)) == ({None, 3} if size == 6 else {None})
    assert found(nn.ReLU()) == {None, size // 2, size // 4}
