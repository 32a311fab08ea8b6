"""Plans that run without passes ask for what they ask for with passes."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from lowland import Criterion
from lowland.core.batch import Batches
from lowland.core.probe import Probe
from lowland.methods import METHODS
from lowland.planner.asks import read
from lowland.planner.calibration import record
from lowland.planner.canned import Canned
from lowland.planner.costs import EXAMPLES, REQUIRED, specimen
from lowland.planner.layout import Layout
from lowland.planner.measure import arithmetic, shape
from lowland.planner.planning import catalog
from lowland.planner.subject import Subject

SIZE = 4
# What these do depends on gradients or losses, and canned ones stay the same: shapes are compared, not decisions.
DECIDE = {"ae-sam", "arsam", "vsam", "ausam"}
STEPS = 6  # a cycle of LookSAM


losses = Criterion(
    lambda model, batch: model(batch[0]),
    lambda logits, batch: nn.functional.cross_entropy(logits, batch[1], reduction="none"),
)


def subject(size: int = SIZE) -> Subject:
    """The model of the tiny training that methods are read from."""
    layers = [nn.Linear(64, 64), nn.LayerNorm(64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 4)]
    model = nn.Sequential(*layers)
    batch = torch.randn(size, 64), torch.randint(4, (size,)), torch.arange(size) % EXAMPLES
    return Subject(model, [torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)], losses, batch, Batches())


@pytest.mark.parametrize("width", [1, 2])
@pytest.mark.parametrize("name", sorted(METHODS))
def test_asks_are_those_of_a_training(name: str, width: int) -> None:
    method = specimen(name)
    turn, canned = arithmetic(subject(), method, width)
    for _ in range(STEPS):
        turn.prepare()
        turn.step()
    found, truth = list(map(shape, canned.steps[-STEPS:])), list(map(shape, read(method, width=width)))
    if name in DECIDE | set(REQUIRED):
        assert set(found) <= set(truth)
    else:
        assert found == truth[:STEPS]


def test_the_catalog_covers_all_methods() -> None:
    assert set(catalog()) | set(REQUIRED) == set(METHODS)


def test_answers_have_the_shapes_of_passes() -> None:
    training = subject()
    recorded = record(training)
    canned = Canned(recorded, 1, training.batches)
    engine, _ = training.engine(specimen("plain"), Layout(), alone=True, executor=canned)
    engine.backward(training.batch)
    half = training.part(2)
    wanted = [i % 2 == 0 for i in range(len(engine.params))]
    whole, some, forward = canned.run(
        engine.work, (Probe(training.batch), Probe(half, wrt=wanted), Probe(half, grad=False))
    )
    assert [r.losses.shape for r in (whole, some, forward)] == [(4,), (2,), (2,)]  # type: ignore[union-attr]
    assert whole.losses is not None
    assert torch.equal(whole.loss, whole.losses.mean())
    assert (whole.divisor, some.divisor, forward.grad) == (4, 2, None)
    assert [g.shape for g in whole.grad or ()] == [p.shape for p in engine.params]
    assert [bool(g.any()) for g in some.grad or ()] == wanted
    assert canned.steps[-1][-1][1].tensors == pytest.approx(sum(wanted) / len(wanted))
    assert canned.steps[-1][-1][2].tensors == 0


def test_answers_are_copies_that_take_turns() -> None:
    training = subject()
    recorded = record(training)
    assert not torch.equal(recorded[0].grad[0], recorded[1].grad[0])  # of two halves of the batch
    canned = Canned(recorded, 1, training.batches)
    engine, _ = training.engine(specimen("plain"), Layout(), alone=True, executor=canned)
    before = [g.clone() for each in recorded for g in each.grad]
    canned.begin(training.batch)
    first, second = (canned.run(engine.work, (Probe(training.batch),))[0].grad for _ in range(2))
    assert first is not None
    assert second is not None
    assert not torch.equal(first[0], second[0])
    for g in (*first, *second):
        g.zero_()
    assert all(torch.equal(a, b) for a, b in zip(before, (g for each in recorded for g in each.grad), strict=True))


def test_the_stock_is_as_large_as_a_step_needs() -> None:
    turn, canned = arithmetic(subject(), specimen("sampa"))
    turn.prepare()
    turn.step()
    turn.prepare()
    assert len(canned._stock) == 2


def test_records_of_batches_that_are_too_small_to_halve() -> None:
    assert [len(each.losses) for each in record(subject(8))] == [4, 4]  # type: ignore[arg-type]
    assert [len(each.losses) for each in record(subject(3))] == [3, 3]  # type: ignore[arg-type]
