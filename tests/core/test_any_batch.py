"""What may be a batch, and what is refused: only methods that cut, keep or choose examples look inside."""

from __future__ import annotations

import pytest
import torch
from core.test_errors import CASES, METHOD_CASES, engine_of, per_example, refused

import lowland
from lowland.core.errors import BatchError, UsageError

CUTS = [CASES[key] for key in ("micro-sam", "k-sam", "esam", "async-sam")]


def in_parts(loss, outputs):
    """A loss function in two parts, which functional SAM needs and every method takes."""
    return lowland.Criterion(outputs, lambda out, batch: loss(lambda _: out, batch))


@METHOD_CASES
def test_an_empty_batch_is_refused_by_every_method(method):
    loss_fn = in_parts(per_example, lambda m, x: m(x))
    refused(engine_of(loss_fn, method), torch.ones(0, 3), BatchError, "at least one example, but has 0; skip empty")


@pytest.mark.parametrize("method", CUTS, ids=lambda m: m.kind)
@pytest.mark.parametrize(
    ("batch", "message"),
    [
        ((), "at least one tensor.*pass inputs and targets"),
        ((torch.ones(3, 3), torch.ones(2)), r"share dimension 0, but batch\[0\] has 3, batch\[1\] has 2; cut them"),
        ({"x": torch.ones(3, 3), "n": object()}, r"batch\['n'\] is a object; pass only tensors.*Engine\(…, cut=…\)"),
    ],
    ids=["nothing", "ragged", "object"],
)
def test_what_cannot_be_cut_is_refused_by_methods_that_cut(method, batch, message):
    loss = lambda m, b: per_example(m, torch.ones(3, 3))  # noqa: E731
    refused(engine_of(loss, method), batch, BatchError, message)


@METHOD_CASES
def test_no_batch_is_refused_where_one_is_needed(method):
    loss_fn = in_parts(per_example, lambda m, b: m(torch.ones(3, 3)))
    engine = engine_of(loss_fn, method)
    if method.needs_batch:
        refused(engine, None, UsageError, r"keeps, cuts or reads batches.*call engine.backward\(batch\)")
    else:
        engine.backward(None)
        assert engine.step == 1
