from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from lowland import SAM, Engine
from lowland.core.batch import Batches
from lowland.core.errors import ArgumentError, UsageError
from lowland.planner.layout import Layout
from lowland.planner.subject import SLOW, Subject


def made(batch: Any, **options: Any) -> Subject:
    model = nn.Linear(3, 2)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5, momentum=0.9)
    return Subject(model, [optimizer], lambda m, b: m(b).sum(dim=1), batch, Batches(**options))


def test_a_part_is_the_first_examples() -> None:
    subject = made(torch.arange(12.0).reshape(4, 3))
    assert subject.size == 4
    assert torch.equal(subject.part(2), subject.batch[:2])
    assert subject.part(4) is subject.batch
    for wrong in (0, 5):
        with pytest.raises(ArgumentError, match=f"examples must be between 1 and the 4 of the batch, but is {wrong}"):
            subject.part(wrong)


def test_a_batch_that_cannot_be_cut() -> None:
    subject = made(object())
    assert subject.size is None
    with pytest.raises(ArgumentError, match="pass a batch that can be cut"):
        subject.part(1)


def test_only_what_is_trained_counts() -> None:
    subject = made(torch.zeros(4, 3))
    assert subject.parameters == 4 * (6 + 2)
    subject.model.bias.requires_grad_(False)  # type: ignore[union-attr]
    assert subject.parameters == 4 * 6


def test_copies_share_nothing_and_stay_where_they_are() -> None:
    subject = made(torch.ones(4, 3))
    model, (optimizer,) = subject.copies()
    assert optimizer.param_groups[0]["lr"] == 0.5 * SLOW
    assert subject.optimizers[0].param_groups[0]["lr"] == 0.5
    assert {id(p) for p in optimizer.param_groups[0]["params"]} == {id(p) for p in model.parameters()}
    assert not {p.data_ptr() for p in model.parameters()} & {p.data_ptr() for p in subject.model.parameters()}
    engine, _ = subject.engine(SAM(), Layout(), alone=True)
    engine.backward(subject.batch)
    assert all(p.grad is None for p in subject.model.parameters())


def test_a_wrapped_model_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    model = nn.Linear(3, 2)
    engine = Engine(SAM(), model, torch.optim.SGD(model.parameters(), lr=0.1), lambda m, b: m(b).sum(dim=1))
    assert Subject.of(engine, torch.zeros(4, 3)).model is model
    for wrapped in ("ddps", "sharded"):
        with monkeypatch.context() as patch:
            patch.setattr(type(engine.work.replicas), wrapped, [model], raising=False)
            patch.setitem(engine.work.replicas.__dict__, wrapped, [model])
            with pytest.raises(
                UsageError, match="this model is wrapped or sharded; pass an engine with the bare model"
            ):
                Subject.of(engine, torch.zeros(4, 3))
