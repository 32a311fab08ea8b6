"""Batches that forward or the loss function writes: every pass sees the same examples."""

from __future__ import annotations

from collections import OrderedDict, UserDict
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hand import close, linear, sam_gradient, sgd
from torch import Tensor, nn

import lowland
from lowland.core.errors import BatchError, LossError

RHO = 0.5
INPUTS, TARGETS = torch.randn(6, 3, dtype=torch.float64), torch.randn(6, 1, dtype=torch.float64)


def by_hand(model: nn.Module, loss: Any) -> list[Tensor]:
    """SAM's gradient of a loss that sees a new batch in every pass."""
    return sam_gradient(list(model.parameters()), loss, RHO)


def batch_of(kind: str) -> Any:
    inputs, targets = INPUTS.clone(), TARGETS.clone()
    return {
        "tuple": lambda: (inputs, targets),
        "list": lambda: [inputs, targets],
        "dict": lambda: {"x": inputs, "y": targets},
        "nested": lambda: {"x": [inputs], "y": {"y": targets}},
        "user dict": lambda: UserDict(x=inputs, y=targets),
        "object": lambda: SimpleNamespace(x=inputs, y=targets),
        "parts": lambda: lowland.Parts([(inputs[:4], targets[:4]), (inputs[4:], targets[4:])]),
    }[kind]()


def read(batch: Any) -> tuple[Tensor, Tensor]:
    if isinstance(batch, tuple | list):
        return batch[0], batch[1]
    x, y = (batch.x, batch.y) if isinstance(batch, SimpleNamespace) else (batch["x"], batch["y"])
    return (x[0], y["y"]) if isinstance(x, list) else (x, y)


def squares(model: Any, x: Tensor, y: Tensor) -> Tensor:
    return (model(x) - y).square().squeeze(1)


KINDS = ["tuple", "list", "dict", "nested", "user dict", "object", "parts"]


@pytest.mark.parametrize(
    ("kind", "micro_batch"),
    [(kind, None) for kind in KINDS] + [(k, 4) for k in KINDS if k not in ("user dict", "object")],
)
def test_a_batch_that_is_written_in_place_is_the_same_in_all_passes(kind: str, micro_batch: int | None) -> None:
    def writes(model: Any, batch: Any) -> Tensor:
        x, y = read(batch)
        x.mul_(0.5).add_(0.1)
        return squares(model, x, y.add_(x.mean(1, keepdim=True)))

    def loss() -> Tensor:
        x = INPUTS * 0.5 + 0.1
        return squares(other, x, TARGETS + x.mean(1, keepdim=True)).mean()

    model, other = linear(), linear()
    engine = lowland.Engine(lowland.SAM(rho=RHO), model, sgd(model), writes, micro_batch=micro_batch)
    right = by_hand(other, loss)
    for _ in range(3):
        engine.backward(batch_of(kind))
        close([p.grad for p in model.parameters()], right)
        engine.optimizer.zero_grad()


@pytest.mark.parametrize("method", [lowland.SAM(rho=RHO), lowland.GSAM(rho=RHO), lowland.MicroSAM(m=2, rho=RHO)])
def test_a_first_layer_in_place(method: lowland.Method) -> None:
    found = []
    for inplace in (True, False):
        model = nn.Sequential(nn.LeakyReLU(0.5, inplace=inplace), linear())
        engine = lowland.Engine(method, model, sgd(model), lambda m, b: squares(m, *b))
        engine.backward(batch_of("tuple"))
        found.append([p.grad for p in model.parameters()])
    close(*found)


def test_entries_that_the_loss_function_takes_out_are_there_again() -> None:
    def pops(model: Any, batch: Any) -> Tensor:
        targets = batch.pop("y")
        batch["x"] = batch["x"] * 2
        batch["new"] = targets
        return squares(model, batch["x"], targets)

    model, other = linear(), linear()
    engine = lowland.Engine(lowland.SAM(rho=RHO), model, sgd(model), pops)
    engine.backward(batch_of("dict"))
    right = by_hand(other, lambda: squares(other, INPUTS * 2, TARGETS).mean())
    close([p.grad for p in model.parameters()], right)


class Outputs(OrderedDict[str, Tensor]):
    """A dictionary that cannot be made as others are, as those of frameworks."""

    def __init__(self, *, x: Tensor, y: Tensor) -> None:
        super().__init__(x=x, y=y)


def test_dictionaries_of_other_kinds_are_restored() -> None:
    model, other = linear(), linear()
    engine = lowland.Engine(lowland.SAM(rho=RHO), model, sgd(model), lambda m, b: squares(m, b["x"], b.pop("y")))
    engine.backward(Outputs(x=INPUTS, y=TARGETS))
    close([p.grad for p in model.parameters()], by_hand(other, lambda: squares(other, INPUTS, TARGETS).mean()))


@pytest.mark.parametrize("steps", [1, 3])
def test_the_batch_that_sampa_keeps_is_as_it_was_given(steps: int) -> None:
    model = nn.Sequential(nn.LeakyReLU(0.5, inplace=True), linear())
    engine = lowland.Engine(lowland.SAMPa(rho=RHO), model, sgd(model), lambda m, b: squares(m, *b))
    for _ in range(steps):
        engine.backward(batch_of("tuple"))
        engine.optimizer.step()
        engine.optimizer.zero_grad()
    assert torch.equal(engine.memory["batch"][0], INPUTS)


def test_a_batch_that_is_first_written_later_is_refused_once_and_kept_from_then_on() -> None:
    late = SimpleNamespace(on=False)

    def writes(model: Any, batch: Any) -> Tensor:
        if late.on:
            batch[0].mul_(0.5)
        return squares(model, *batch)

    model, other = linear(), linear()
    engine = lowland.Engine(lowland.SAM(rho=RHO), model, sgd(model), writes)
    engine.backward(batch_of("tuple"))
    engine.optimizer.zero_grad()
    late.on = True
    before = [p.clone() for p in model.parameters()]
    with pytest.raises(BatchError, match=r"batch\[0\] was written in place.*load the batch again.*inputs.clone"):
        engine.backward(batch_of("tuple"))
    assert all(map(torch.equal, model.parameters(), before))
    assert all(p.grad is None for p in model.parameters())
    engine.backward(batch_of("tuple"))
    close([p.grad for p in model.parameters()], by_hand(other, lambda: squares(other, INPUTS * 0.5, TARGETS).mean()))


def test_a_failed_step_leaves_the_batch_as_it_was() -> None:
    def fails(model: Any, batch: Any) -> Tensor:
        batch["x"].mul_(0.5)
        del batch["y"]
        raise RuntimeError("no")

    model, batch = linear(), batch_of("dict")
    engine = lowland.Engine(lowland.SAM(rho=RHO), model, sgd(model), fails)
    with pytest.raises(RuntimeError, match="no"):
        engine.backward(batch)
    assert list(batch) == ["x", "y"]
    assert torch.equal(batch["x"], INPUTS)


def test_a_training_that_leaves_batches_alone_copies_them_in_the_first_step_only(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    copies = []
    monkeypatch.setattr("lowland.executors.examples.copied", lambda t: copies.append(t) or t.clone())
    model = linear()
    engine = lowland.Engine(lowland.SAM(rho=RHO), model, sgd(model), lambda m, b: squares(m, *b))
    counts = []
    for _ in range(3):
        engine.backward(batch_of("tuple"))
        counts.append(len(copies))
    assert counts == [2, 2, 2]


@pytest.mark.parametrize(
    ("batch", "name"),
    [
        ((INPUTS, iter([INPUTS])), r"batch\[1\] is a list_iterator"),
        ({"x": INPUTS, "more": {"u": (u for u in [INPUTS])}}, r"batch\['more'\]\['u'\] is a generator"),
        (SimpleNamespace(x=INPUTS, u=zip([1], [2], strict=True)), r"batch\['u'\] is a zip"),
    ],
    ids=["list", "generator", "object"],
)
def test_an_iterator_in_a_batch_is_refused(batch: Any, name: str) -> None:
    model = linear()
    engine = lowland.Engine(lowland.SAM(rho=RHO), model, sgd(model), lambda m, b: squares(m, INPUTS, TARGETS))
    with pytest.raises(BatchError, match=f"{name}, an iterator.*next"):
        engine.backward(batch)


def test_a_tensor_that_is_empty_beside_the_examples_is_no_empty_batch() -> None:
    model = linear()
    engine = lowland.Engine(
        lowland.SAM(rho=RHO), model, sgd(model), lambda m, b: squares(m, b["x"], b["y"]), micro_batch=None
    )
    other = linear()
    right = by_hand(other, lambda: squares(other, INPUTS, TARGETS).mean())
    for boxes in (torch.zeros(2, 4), torch.zeros(0, 4)):
        engine.backward({**batch_of("dict"), "boxes": boxes})
        close([p.grad for p in model.parameters()], right)
        engine.optimizer.zero_grad()
    with pytest.raises(BatchError, match="at least one example, but has 0"):
        engine.backward({"x": INPUTS[:0], "y": TARGETS[:0]})


def test_packed_sequences_are_no_examples_to_count() -> None:
    model = nn.GRU(3, 4).double()
    engine = lowland.Engine(lowland.SAM(), model, sgd(model), square_of_last)
    for lengths in ((5, 3), (5,)):
        engine.backward(nn.utils.rnn.pack_sequence([torch.randn(n, 3, dtype=torch.float64) for n in lengths]))
    cutting = lowland.Engine(lowland.MicroSAM(m=2), model, sgd(model), square_of_last)
    with pytest.raises(BatchError, match=r"PackedSequence.*pack them in loss_fn.*Parts"):
        cutting.backward(nn.utils.rnn.pack_sequence([torch.randn(5, 3, dtype=torch.float64)] * 2))


def square_of_last(model: Any, batch: Any) -> Tensor:
    return model(batch)[1][0].square().mean(1)


def test_another_dimension_of_examples_is_said_in_the_refusal() -> None:
    model = linear()
    engine = lowland.Engine(lowland.SAM(), model, sgd(model), lambda m, b: squares(m, *b)[:2])
    with pytest.raises(LossError, match=r"cut=Slices\(dim=1\)"):
        engine.backward((INPUTS, TARGETS))
