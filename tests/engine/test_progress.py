"""What an engine says about how much of the training is done, and that all ranks go by the same."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest
import torch
from guarded import data, engine_for, net
from ranks import on_ranks

import lowland.testing
from lowland.core.errors import ArgumentError, RankError, UsageError


def test_it_counts_steps_or_is_what_the_caller_sets() -> None:
    engine = engine_for(net(), lowland.SAM(), total_steps=4)
    seen = [engine.progress]
    for step in range(5):
        engine.backward(data(step))
        seen.append(engine.progress)
    assert seen == [0.0, 0.25, 0.5, 0.75, 1.0, 1.0]
    engine.progress = 0.37
    assert engine.progress == 0.37
    engine.backward(data())
    assert engine.progress == 0.37
    engine.progress = 1
    assert engine.progress == 1.0


def test_without_either_it_is_not_known() -> None:
    engine = engine_for(net(), lowland.SAM())
    with pytest.raises(
        UsageError, match=r"engine.progress must be known, because the plan goes by .*engine.progress = 0.37"
    ):
        _ = engine.progress
    engine.backward(data())  # which nobody needs here


@pytest.mark.parametrize("value", [-0.1, 1.1, float("nan"), True, None, "half", torch.tensor(0.5)], ids=str)
def test_a_fraction_is_a_number(value: Any) -> None:
    engine = engine_for(net(), lowland.SAM())
    with pytest.raises(ArgumentError, match=r"progress must be in \[0, 1\], but is .*step / steps"):
        engine.progress = value


@pytest.mark.parametrize("value", [0, -3, 2.5, True, "many"], ids=str)
def test_total_steps_is_a_number_of_steps(value: Any) -> None:
    with pytest.raises(ArgumentError, match=r"total_steps must be an integer >= 1, but is .*calls of engine.backward"):
        engine_for(net(), lowland.SAM(), total_steps=value)


def test_it_is_set_between_steps() -> None:
    engine = engine_for(net(), lowland.SAM(), total_steps=4)
    for p in engine.passes(data()):
        with p:
            with pytest.raises(UsageError, match=r"engine.progress must be set between steps"):
                engine.progress = 0.5
            p.backward(engine.loss_fn(engine.model, p.batch))
    engine.progress = 0.5


def test_a_resume_goes_on_at_the_same_fraction() -> None:
    method = lowland.Late(start=0.5)
    engine = engine_for(net(), method, total_steps=4)
    for step in range(2):
        engine.backward(data(step))
    again = engine_for(net(), method, total_steps=4)
    again.load_state_dict(engine.state_dict())
    assert again.progress == 0.5
    again.backward(data(2))
    assert again.cost.probes == 2 + 2  # plain twice, then SAM
    engine.progress = 0.9
    other = engine_for(net(), method)
    other.load_state_dict(engine.state_dict())
    with pytest.raises(UsageError, match=r"engine.progress must be known, because Late"):  # set anew
        other.backward(data(2))


@dataclass(frozen=True, kw_only=True)
class Fading(lowland.Method):
    """A method of one's own whose radius fades with the training."""

    @property
    def needs_progress(self) -> bool:
        return True

    def plan(self, engine: Any, batch: Any) -> Any:
        here = yield lowland.Probe(batch)
        up = lowland.vec.scale(here.grad, self.rho * (1 - engine.progress))
        there = yield lowland.Probe(batch, at=up)
        return here.loss, there.grad


def test_a_method_of_one_s_own_reads_it() -> None:
    lowland.testing.check_method(Fading())
    with pytest.raises(UsageError, match="because Fading goes by the fraction"):
        engine_for(net(), Fading()).backward(data())


def on_a_rank(fractions: list[list[float]], total: list[int | None]) -> str:
    """Train on two ranks, each of which sets its own fractions; what it is told."""
    from torch.distributed.device_mesh import init_device_mesh

    rank = torch.distributed.get_rank()
    mesh = init_device_mesh("cpu", (2,), mesh_dim_names=("replicate",))
    try:
        engine = engine_for(net(), lowland.Late(start=0.5), mesh=mesh["replicate"], total_steps=total[rank])
        for step, fraction in enumerate(fractions[rank]):
            engine.progress = fraction
            engine.backward(data(step))
    except RankError as error:
        return f"{engine.step if total[rank] is None else 0}: {error}"
    return f"{engine.step}: went on, {engine.cost.probes} probes"


def test_ranks_that_differ_are_refused_before_they_wait_for_each_other() -> None:
    same = [[0.1, 0.4, 0.6], [0.1, 0.4, 0.6]]
    assert on_ranks(2, on_a_rank, same, [None, None]) == ["3: went on, 4 probes"] * 2
    for told in on_ranks(2, on_a_rank, [[0.4, 0.5], [0.4, 0.6]], [None, None]):
        assert told.startswith(
            "1: engine.progress must be the same on all ranks, but is 0.6 on rank 1 and 0.5 on rank 0"
        )
    for told in on_ranks(2, on_a_rank, same, [7, 8]):
        assert told.startswith("0: total_steps must be the same on all ranks, but is 8 on rank 1 and 7 on rank 0")
