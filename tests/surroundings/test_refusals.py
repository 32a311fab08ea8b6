"""Arguments, batches and losses of the wrong kind: a sentence, no error from inside and no wrong number."""

from __future__ import annotations

import copy
import functools
import pickle
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from hand import close, sgd, square
from torch import Tensor, nn

import lowland
from lowland.core.errors import ArgumentError, BatchError, LossError, ParameterError, StateError, UsageError
from lowland.core.loss import one_for_all

METHODS = [lowland.SAM(), lowland.SAMPa(), lowland.LookSAM(k=2), lowland.MicroSAM(m=2)]
each = pytest.mark.parametrize("method", METHODS, ids=lambda m: m.kind)
X = torch.arange(12.0).view(4, 3) / 7


def engine(method: Any = METHODS[0], loss: Any = square, **options: Any) -> lowland.Engine:
    net = nn.Linear(3, 2).double()
    return lowland.Engine(method, net, sgd(net), loss, **options)


@each
def test_an_expanded_mean_is_a_mean(method: Any) -> None:
    def loss(model: Any, b: Any) -> Tensor:  # the divisor is that of the part
        x, mask = b
        return ((square(model, x) * mask).sum() / mask.sum()).expand(len(mask))

    made = engine(method, loss, micro_batch=2)
    with pytest.raises(LossError, match=r"a mean, shape \(\), for a part; .* no mean that is expanded"):
        made.backward((X.double(), torch.tensor([1.0, 1.0, 1.0, 0.0]).double()))


@each
def test_a_repeated_mean_is_a_mean(method: Any) -> None:
    def loss(model: Any, b: Any) -> Tensor:
        x, mask = b
        return ((square(model, x) * mask).sum() / mask.sum()).repeat(len(mask)) / 1.5

    made = engine(method, loss, micro_batch=2)
    with pytest.raises(LossError, match=r"a mean, shape \(\), for a part"):
        made.backward((X.double(), torch.tensor([1.0, 1.0, 1.0, 0.0]).double()))


@each
def test_aux_in_a_dataclass_is_detached(method: Any) -> None:
    @dataclass(frozen=True)
    class Output:
        logits: Tensor
        more: dict[str, Tensor]

    def loss(model: Any, b: Any) -> lowland.Loss:
        out = model(b)
        return lowland.Loss(out.square().mean(1).sum(), len(b), Output(out, {"half": out / 2}))

    made = engine(method, loss)
    made.backward(X.double())
    for aux in made.aux if isinstance(made.aux, list) else [made.aux]:
        assert not aux.logits.requires_grad
        assert not aux.more["half"].requires_grad
    if method.kind == "SAM":
        close([made.aux.logits], [made.model(X.double()).detach()])


@each
def test_an_iterator_is_no_batch(method: Any) -> None:
    made = engine(method, lambda model, b: square(model, next(b)))
    batches = iter([X.double()] * 5)
    with pytest.raises(BatchError, match=r"is a list_iterator, an iterator, which can .*next\(iterator\)"):
        made.backward(batches)
    assert len(list(batches)) == 5


class Cutter:
    def __init__(self, size: Any, take: Any) -> None:
        self.size, self.take = size, take


@pytest.mark.parametrize(
    ("cut", "kind", "message"),
    [
        (Cutter(lambda b: torch.tensor(len(b)), lambda b, i: b[i]), ArgumentError, r"an int, but returned tensor\(4\)"),
        (Cutter(lambda b: None, lambda b, i: b[i]), ArgumentError, "an int, but returned None"),
        (Cutter(len, lambda b, i: b), BatchError, r"for slice\(0, 2\) returned a batch of 4"),
    ],
    ids=["tensor", "none", "whole"],
)
def test_cutters_that_count_or_take_wrongly(cut: Any, kind: Any, message: str) -> None:
    with pytest.raises(kind, match=message):
        engine(cut=cut, micro_batch=2).backward(X.double())


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors is in prototype")
@pytest.mark.parametrize("alone", [True, False], ids=["alone", "in a tuple"])
@pytest.mark.parametrize(("kind", "layout"), [("sparse", None), ("nested", torch.jagged), ("nested", torch.strided)])
def test_tensors_that_cannot_be_sliced_are_refused_where_they_are_cut(kind: str, layout: Any, alone: bool) -> None:
    def loss(model: Any, b: Any) -> Tensor:
        b = b if alone else b[0]
        if kind == "sparse":
            return (torch.sparse.mm(b, model.weight.T) + model.bias).square().mean(1)
        return torch.stack([model(t).square().mean() for t in b.unbind()])

    ragged = [X[:3].double(), X[:1].double()]
    batch: Any = X.double().to_sparse() if kind == "sparse" else torch.nested.nested_tensor(ragged, layout=layout)
    batch = batch if alone else (batch,)
    for method in METHODS[:3]:
        engine(method, loss).backward(batch)
    with pytest.raises(BatchError, match=rf"must be dense, but batch(\[0\])? is {kind}"):
        engine(METHODS[3], loss).backward(batch)


@each
@pytest.mark.parametrize(
    ("select", "message"),
    [
        ("bias", "must be a function .* but is 'bias'"),
        (lambda name, p: True, r"must take \(module, name, parameter\), but cannot \(too many positional"),
        (lambda m, n, p: p > 0, r"for weight returned a tensor of shape \(2, 3\)"),
    ],
    ids=["text", "two", "tensor"],
)
def test_selects_of_the_wrong_kind(method: Any, select: Any, message: str) -> None:
    with pytest.raises(ArgumentError, match=message):
        engine(type(method)(geometry=lowland.L2(select=select)))


@each
def test_a_model_that_is_converted_needs_a_new_engine(method: Any) -> None:
    made = engine(method)
    made.backward(X.double())
    made.model.float()
    with pytest.raises(ParameterError, match=r"since the engine was made weight, bias are of another"):
        made.backward(X)
    assert made.step == 1


@pytest.mark.parametrize(
    ("model", "loader", "message"),
    [
        ([nn.BatchNorm1d(3)], [X], "model must be a torch.nn.Module, but is a list"),
        (nn.BatchNorm1d(3), X, "loader must give batches one after the other, but is a Tensor"),
        (nn.BatchNorm1d(3), None, "loader must give batches one after the other, but is a NoneType"),
        (nn.BatchNorm1d(3), [X.numpy()], "loader must give tensors of inputs, .* but gave a ndarray"),
    ],
    ids=["list", "tensor", "none", "numpy"],
)
def test_statistics_are_refreshed_on_tensors(model: Any, loader: Any, message: str) -> None:
    with pytest.raises(ArgumentError, match=message):
        lowland.refresh_stats(model, loader)


def test_statistics_are_refreshed_on_parts_and_explained_on_other_batches() -> None:
    class Other:
        pass

    made, whole = (nn.Sequential(nn.BatchNorm1d(3)).double() for _ in range(2))
    lowland.refresh_stats(made, [lowland.Parts([X[:2].double(), X[2:].double()])])
    lowland.refresh_stats(whole, [X[:2].double(), X[2:].double()])
    close(made.buffers(), whole.buffers(), 0)
    with pytest.raises(AttributeError) as caught:
        lowland.refresh_stats(made, [Other()])
    assert "refresh_stats called model(batch) with a Other; say how the model runs on it" in caught.value.__notes__[0]
    with pytest.raises(ArgumentError, match=r"forward must take \(model, batch\), but cannot be called so"):
        lowland.refresh_stats(made, [X.double()], forward=lambda batch: batch)
    close(made.buffers(), whole.buffers(), 0)


def test_a_criterion_with_arguments_is_a_criterion() -> None:
    for loss in (functools.partial(nn.functional.cross_entropy, reduction="none"), functools.partial(nn.MSELoss())):
        with pytest.raises(ArgumentError, match="does not take a model and a batch; write: def loss_fn"):
            engine(loss=loss)


def test_a_base_that_raises_without_a_closure_is_explained() -> None:
    class Needy(torch.optim.SGD):
        def step(self, closure: Any = None) -> Any:
            if closure is None:
                raise RuntimeError("needs a closure")

    net = nn.Linear(3, 2).double()
    made = lowland.Engine(lowland.SAM(), net, Needy(net.parameters(), lr=0.1))
    optimizer = lowland.ClosureOptimizer(made)

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = square(net, X.double()).mean()
        loss.backward()
        return loss

    with pytest.raises(RuntimeError, match="needs a closure") as caught:
        optimizer.step(closure)
    assert "if Needy needs a closure, call Needy.step(closure) without ClosureOptimizer" in caught.value.__notes__[0]
    assert made.step == 0


@pytest.mark.parametrize("copied", [copy.deepcopy, pickle.dumps])
def test_a_closure_optimizer_is_not_copied(copied: Any) -> None:
    with pytest.raises(UsageError, match="ClosureOptimizer must not be copied or pickled"):
        copied(lowland.ClosureOptimizer(engine()))


def test_doors_say_what_they_want() -> None:
    with pytest.raises(ArgumentError, match=r"engine must be an Engine, but is SAM"):
        lowland.ClosureOptimizer(lowland.SAM())
    optimizer = lowland.ClosureOptimizer(engine())
    with pytest.raises(ArgumentError, match="closure must be a function without arguments, but is a Tensor"):
        optimizer.step(torch.ones(()))
    with pytest.raises(StateError, match="but is a int; load the checkpoint"):
        engine().load_state_dict(3)
    for parts in (3, "ab", X):
        with pytest.raises(BatchError, match=f"was given a {type(parts).__name__}"):
            lowland.Parts(parts)


MEAN = torch.ones((), requires_grad=True)
WEIGHTS = torch.arange(1.0, 5.0)


@pytest.mark.parametrize(
    ("losses", "one"),
    [
        (lambda: MEAN.expand(4), True),
        (lambda: MEAN.repeat(4) * 2, True),
        (lambda: MEAN.repeat(4) / torch.tensor(2.0), True),
        (lambda: MEAN.expand(4).clone(), True),
        (lambda: MEAN.expand(4) * WEIGHTS, False),
        (lambda: WEIGHTS * MEAN.repeat(4), False),
        (lambda: MEAN.repeat(4) / WEIGHTS, False),
        (lambda: (MEAN * WEIGHTS[:2]).repeat(2), False),
        (lambda: (MEAN * WEIGHTS).expand(1, 4).clone().view(4), False),
    ],
)
def test_one_number_for_all_examples_is_told_from_losses_by_example(losses: Any, one: bool) -> None:
    assert one_for_all(losses()) == one
