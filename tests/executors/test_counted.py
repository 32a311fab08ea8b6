from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from lowland import ARSAM, SAM, Counted, Engine, Executor, Local, LookSAM, MicroSAM, Plain, Probe, SAMPa
from lowland.executors.counted import Cost
from lowland.methods.base import Method


def engine_of(method, **options) -> Engine:
    torch.manual_seed(0)
    model = nn.Linear(3, 2)
    return Engine(
        method, model, torch.optim.SGD(model.parameters(), lr=0.1), lambda m, x: m(x).square().sum(1), **options
    )


def run(engine: Engine, steps: int, count: int = 8) -> Cost:
    for _ in range(steps):
        engine.backward(torch.randn(count, 3))
    return engine.cost


# steps, probes, examples, forwards, gradients, sequential, reduces after 10 steps of 8 examples
EXPECTED = {
    "plain": (Plain(), (10, 10, 80, 10, 10, 10, 10)),
    "sam": (SAM(), (10, 20, 160, 20, 20, 20, 20)),
    "sampa": (SAMPa(), (10, 20, 160, 20, 20, 10, 20)),
    "looksam": (LookSAM(k=5), (10, 12, 96, 12, 12, 12, 12)),
    "micro-sam": (MicroSAM(m=4), (10, 80, 160, 20, 20, 20, 10)),
    "arsam": (ARSAM(warmup=10), (10, 20, 160, 20, 20, 20, 20)),
}


@pytest.mark.parametrize(("method", "expected"), EXPECTED.values(), ids=EXPECTED)
def test_costs_are_read_off_the_plan(method, expected):
    cost = run(engine_of(method), 10)
    assert (cost.steps, cost.probes, cost.examples) == expected[:3]
    assert (cost.forwards, cost.gradients, cost.sequential) == pytest.approx(expected[3:6], rel=1e-12)
    assert cost.reduces == expected[6]
    assert cost.bytes == 0
    assert cost.seconds > 0


def test_micro_batches_do_not_change_the_count():
    one, other = run(engine_of(SAM()), 3), run(engine_of(SAM(), micro_batch=3), 3)
    one.seconds = other.seconds = 0.0
    assert one == other


class Wide(Local):
    """Pretends to answer several probes at once."""

    def __init__(self, width):
        self.width = width


@pytest.mark.parametrize(("width", "sequential"), [(1, 2.0), (2, 1.0), (4, 0.5), (9, 0.5)])
def test_width_shortens_the_critical_path_alone(width, sequential):
    engine = engine_of(MicroSAM(m=4), executor=Wide(width))
    assert engine.width == width
    cost = run(engine, 1)
    assert cost.sequential == sequential
    assert cost.gradients == 2.0


def test_uneven_shards_count_by_the_largest_of_a_wave():
    cost = run(engine_of(MicroSAM(m=4), executor=Wide(4)), 1, count=9)
    assert cost.sequential == pytest.approx(2 * 3 / 9)
    assert cost.gradients == pytest.approx(2.0)


class Mixed(Method):
    """Forward passes alone, on parts, beside a gradient."""

    def plan(self, engine, batch):
        yield Probe(batch[:2], grad=False)
        here, _ = yield Probe(batch), Probe(batch[:4], grad=False)
        return here.loss, here.grad


def test_passes_without_gradients_count_as_forwards():
    cost = run(engine_of(Mixed()), 2)
    assert cost.probes == 6
    assert cost.examples == 2 * (2 + 8 + 4)
    assert cost.forwards == 2 * (14 / 8)
    assert (cost.gradients, cost.sequential, cost.reduces) == (2.0, 2.0, 2)


@pytest.mark.parametrize("batch", [None, torch.ones(8, 3)])
def test_passes_count_like_backward(batch):
    engine = engine_of(LookSAM(k=2))
    for _ in range(4):
        for p in engine.passes(batch):
            with p:
                p.backward(engine.model(torch.ones(8, 3)).square().sum(1))
    cost = engine.cost
    assert (cost.steps, cost.probes, cost.gradients, cost.sequential, cost.forwards) == (4, 6, 6.0, 6.0, 6.0)


def test_a_failed_step_is_no_step():
    engine = engine_of(SAM())
    engine.loss_fn = engine.work.loss_fn = lambda m, x: m(x)
    with pytest.raises(ValueError):
        engine.backward(torch.ones(8, 3))
    assert engine.cost.steps == 0
    assert engine.cost.probes == 1


def test_any_executor_is_wrapped_once():
    inner = Local()
    counted = Counted(inner)
    assert counted.inner is inner
    assert isinstance(counted, Executor)
    assert isinstance(Counted().inner, Local)
    assert engine_of(SAM(), executor=counted).executor is counted
    engine = engine_of(SAM(), executor=inner)
    assert isinstance(engine.executor, Counted)
    assert engine.executor.inner is inner


@pytest.mark.parametrize("device", ["cuda:1", "xpu"])
def test_the_host_does_not_know_the_seconds_of_a_gpu(device):
    """Its calls return at once, so their time is not that of the probes."""

    class Answers(Local):
        def run(self, work, probes):
            return ()

    counted = Counted(Answers())
    counted.run(SimpleNamespace(device=torch.device("cpu")), (Probe(torch.ones(2)),))
    assert counted.cost.seconds > 0
    counted.run(SimpleNamespace(device=torch.device(device)), (Probe(torch.ones(2)),))
    assert counted.cost.seconds is None
    counted.run(SimpleNamespace(device=torch.device("cpu")), (Probe(torch.ones(2)),))
    assert counted.cost.seconds is None  # a sum with an unknown part
