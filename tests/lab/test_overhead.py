from __future__ import annotations

import pytest
import torch
from torch import nn

from lowland.errors import ArgumentError, UnknownNameError
from lowland.lab import overhead


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch) -> str:
    """A case that takes milliseconds."""
    batch = torch.randn(4, 16), torch.randint(10, (4,))
    monkeypatch.setitem(overhead.CASES, "tiny", lambda: overhead.Case(lambda: overhead.ManySmall(depth=3), batch))
    return "tiny"


def test_the_small_model_has_a_thousand_tensors() -> None:
    assert len(list(overhead.ManySmall().parameters())) == 1000


def test_figures(tiny: str) -> None:
    ticks: list[int] = []
    result = overhead.measure(tiny, rounds=12, tick=lambda: ticks.append(1))
    assert result["rounds"] == 10  # whole cycles of LookSAM
    assert len(ticks) == 10 + overhead.WARMUP
    assert {"plain", "two gradients", "lowland sam", "lowland looksam", "lowland sampa"} <= set(result["median_ms"])
    assert all(value > 0 for value in (*result["median_ms"].values(), *result["ratios"].values()))


def test_two_gradients_cost_more_than_one(tiny: str) -> None:
    # A sanity check of the yardsticks themselves; the margin is wide because three layers are mostly overhead.
    result = overhead.measure(tiny, rounds=50)
    assert result["median_ms"]["two gradients"] > 1.2 * result["median_ms"]["plain"]


def test_sam_keeps_one_copy_of_the_parameters() -> None:
    """The issue's bound, on the real model: at the peak of a step SAM holds the saved weights and nothing else."""
    generator = torch.Generator().manual_seed(0)
    batch = torch.randn(8, 3, 32, 32, generator=generator), torch.randint(10, (8,), generator=generator)
    extra = overhead._memory(overhead.Case(overhead.CASES["resnet20-batch64"]().model, batch))
    assert 0.99 <= extra["SAM extra / parameters"] <= 1.001  # plus a few scalars


def test_the_memory_measurement_sees_what_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    class Hoards(overhead.lowland.SAM):
        def plan(self, engine, batch):  # type: ignore[no-untyped-def]
            here = yield overhead.lowland.Probe(batch)
            there = yield overhead.lowland.Probe(batch, at=self.ascent(engine, here.grad))
            return here.loss, there.grad

    monkeypatch.setattr(overhead.lowland, "SAM", Hoards)
    batch = torch.randn(64, 16), torch.randint(10, (64,))
    extra = overhead._memory(overhead.Case(lambda: nn.Sequential(nn.Linear(16, 256), nn.Linear(256, 16)), batch))
    assert extra["Hoards extra / parameters"] > 1.5


def test_bad_input() -> None:
    with pytest.raises(UnknownNameError, match="resnet20-batch64"):
        overhead.measure("resnet20")
    with pytest.raises(ArgumentError, match="rounds must be an integer >= 5"):
        overhead.measure("resnet20-batch64", rounds=4)


def test_threads_are_put_back(tiny: str) -> None:
    before = torch.get_num_threads()
    overhead.measure(tiny, rounds=5)
    assert torch.get_num_threads() == before


def test_ratios_are_medians_of_neighbors_in_time() -> None:
    plain = [1.0, 2.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0]
    look = [2.0, 2.0, 1.0, 1.0, 1.0, 2.0, 1.0, 1.0, 1.0, 9.0, 2.0, 1.0, 1.0, 1.0, 1.0]  # one step was disturbed
    others = dict.fromkeys(("two gradients", "lowland plain", "lowland sam", "lowland sampa"), plain)
    ratios = overhead._ratios({"plain": plain, "lowland looksam": look, **others})
    assert ratios["lowland looksam(k=5) / plain, mean over the cycle"] == 1.2
    assert ratios["lowland sam / plain"] == 1.0
