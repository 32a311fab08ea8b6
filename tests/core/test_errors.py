"""Bad input, from the outside: each error names argument, rule, value and remedy, and leaves nothing behind."""

from __future__ import annotations

import dataclasses
import inspect

import pytest
import torch
from torch import nn

import lowland
from lowland import METHODS, SAM, Engine, LookSAM, SAMPa
from lowland.core import errors
from lowland.core.errors import (
    ArgumentError,
    LossError,
    LowlandError,
    MissingExtraError,
    ParameterError,
    UnknownNameError,
    UsageError,
)
from lowland.methods import make

# The tree


def test_all_errors_have_one_ancestor_and_a_built_in_one():
    kinds = [k for _, k in inspect.getmembers(errors, inspect.isclass) if issubclass(k, Exception)]
    assert len(kinds) == 11
    for kind in kinds:
        assert issubclass(kind, LowlandError)
        assert kind is LowlandError or issubclass(kind, ValueError | RuntimeError | ImportError)
        assert kind.__name__ in errors.__doc__


def test_missing_extras_say_how_to_install():
    error = MissingExtraError("rich", "lab")
    assert isinstance(error, ImportError)
    assert str(error) == "rich is not installed; run: pip install 'lowland[lab]'"


@pytest.mark.parametrize(
    ("name", "near"),
    [("sampla", "sampa"), ("looksma", "looksam"), ("microsam", "micro-sam"), ("SAM", "sam"), ("LookSAM", "looksam")],
)
def test_unknown_names_suggest_the_nearest(name, near):
    error = UnknownNameError("method", name, METHODS)
    assert f"unknown method {name!r}: did you mean {near!r}? known are adasam, ae-sam, arsam" in str(error)


def test_unknown_names_far_from_all_list_them():
    error = UnknownNameError("task", "zzz", ["digits", "cifar10"])
    assert str(error) == "unknown task 'zzz': known are cifar10, digits"


def test_method_texts_that_are_wrong():
    with pytest.raises(UnknownNameError, match="unknown method 'samp': did you mean 'sampa'"):
        make("samp:rho=0.1")
    with pytest.raises(UnknownNameError, match="unknown field of sampa 'lamb': did you mean 'lam'"):
        make("sampa:lamb=0.1")


# The engine


def network() -> nn.Linear:
    torch.manual_seed(0)
    return nn.Linear(3, 2)


def per_example(model, x):
    return model(x).square().sum(1)


def engine_of(loss_fn=per_example, method=SAM(), model=None, **options) -> Engine:  # noqa: B008 - a constant
    model = network() if model is None else model
    return Engine(method, model, torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9), loss_fn, **options)


def refused(engine: Engine, batch, kind, message: str) -> None:
    """The call fails with the message, and all is as it was."""
    if engine.loss_fn is per_example:
        engine.backward(torch.ones(2, 3))  # so that there is something to lose
    weights = [p.detach().clone() for p in engine.params]
    grads = [p.grad for p in engine.params]
    values = [None if g is None else g.clone() for g in grads]
    memory, step = dict(engine.memory), engine.step
    with pytest.raises(kind, match=message):
        engine.backward(batch)
    assert all(torch.equal(p, w) for p, w in zip(engine.params, weights, strict=True))
    assert all(p.grad is g for p, g in zip(engine.params, grads, strict=True))
    assert all(g is None or torch.equal(g, v) for g, v in zip(grads, values, strict=True))
    assert all(engine.memory[k] is v for k, v in memory.items())
    assert engine.memory.keys() == memory.keys()
    assert engine.step == step
    assert all(p.requires_grad for p in engine.params)


# What these batches, losses and networks lack, for the methods that want more. AUSAM's indices have tests of their own.
WANTS = {"late": {"start": 0}, "ae-sam": {"total": 9}, "bisam": {"surrogate": per_example}}
WANTS["sam-on"] = {"extra": lambda module, name, parameter: True}
CASES = {key: kind(**WANTS.get(key, {})) for key, kind in METHODS.items() if key != "ausam"}
METHOD_CASES = pytest.mark.parametrize("method", CASES.values(), ids=CASES)


LOSSES = {
    "matrix": (
        lambda m, x: m(x).square(),
        r"shape \(4,\), or their mean, shape \(\), but returned shape \(4, 2\); use",
    ),
    "column": (lambda m, x: m(x).square().sum(1, keepdim=True), r"returned shape \(4, 1\)"),
    "classes": (lambda m, x: m(x).square().mean(0), r"shape \(4,\).*returned shape \(2,\)"),
    "number": (lambda m, x: m(x).square().mean().item(), r"returned a float; return the loss itself"),
    "nothing": (lambda m, x: None, r"returned a NoneType"),
    "pair": (lambda m, x: (m(x).square().mean(), m(x)), r"returned a tuple"),
    "detached": (lambda m, x: m(x).square().mean().detach(), r"needs no gradient; compute it .* without detach\(\)"),
    "detached each": (lambda m, x: m(x).square().sum(1).detach(), r"needs no gradient"),
    "constant": (lambda m, x: x.square().mean(), r"needs no gradient"),
    "integers": (lambda m, x: m(x).argmax(1), r"loss_fn must return"),
}


@pytest.mark.parametrize(("loss_fn", "message"), LOSSES.values(), ids=LOSSES)
def test_unusable_losses_are_refused(loss_fn, message):
    refused(engine_of(loss_fn, METHODS["sam"]()), torch.ones(4, 3), LossError, message)


@METHOD_CASES
@pytest.mark.parametrize("loss", ["matrix", "nothing", "detached"])
def test_unusable_losses_are_refused_by_every_method(method, loss):
    loss_fn, message = LOSSES[loss]
    if type(method) is METHODS["micro-sam"]:
        message = message.replace("4", "1")  # which sees shards of one example
    if type(method) is METHODS["bisam"]:
        method = dataclasses.replace(method, surrogate=loss_fn)
    if type(method) is METHODS["functional-sam"]:
        of_model = loss_fn
        loss_fn = lowland.Criterion(lambda m, x: m(x), lambda out, x: of_model(lambda _: out, x))
    if isinstance(method, METHODS["k-sam"] | METHODS["esam"] | METHODS["micro-sam"]) and loss == "detached":
        message += '|reduction="none"'  # a mean, as well
    refused(engine_of(loss_fn, method), torch.ones(4, 3), LossError, message)


@pytest.mark.parametrize("name", ["matrix", "column", "classes", "number", "detached"])
def test_micro_batches_do_not_hide_unusable_losses(name):
    # Parts of 3, so that no wrong dimension happens to fit.
    engine = engine_of(LOSSES[name][0], micro_batch=3)
    refused(engine, torch.ones(6, 3), LossError, "loss_fn must return")


def test_a_loss_that_depends_on_tensors_of_others_is_refused():
    stranger = torch.ones((), requires_grad=True)
    engine = engine_of(lambda m, x: x.sum(1) * stranger)
    refused(engine, torch.ones(2, 3), ParameterError, r"the loss reaches .* a tensor of shape \(\) is not.*detach it")
    assert stranger.grad is None


def test_sparse_gradients_are_refused_and_nothing_is_left_behind():
    model = nn.Sequential(nn.Embedding(5, 2, sparse=True), nn.Flatten(0), nn.Linear(4, 1))
    engine = engine_of(lambda m, x: m(x).square().sum(), model=model)
    refused(engine, torch.tensor([1, 2]), ParameterError, r"must be dense, .*; make its module with sparse=False")


def test_without_a_loss_function_backward_says_what_to_do():
    refused(
        engine_of(None), torch.ones(2, 3), UsageError, r"loss_fn is None.*Engine\(…, loss_fn=…\), or run the passes"
    )


ARGUMENTS = {
    "method class": (lambda m, o: Engine(SAM, m, o), "method must be a Method, but is .*; pass a value such as SAM"),
    "method text": (lambda m, o: Engine("sam", m, o), "method must be a Method, but is 'sam'; pass a value"),
    "model": (lambda m, o: Engine(SAM(), m.forward, o), "model must be a torch.nn.Module, but is a method; pass the"),
    "mesh": (lambda m, o: Engine(SAM(), m, o, mesh=object()), "mesh must be a torch DeviceMesh, but is <object"),
    "micro_batch": (
        lambda m, o: Engine(SAM(), m, o, micro_batch=0),
        "micro_batch must be an integer >= 1, but is 0; None",
    ),
    "rng": (
        lambda m, o: Engine(SAM(), m, o, rng="fixed"),
        "rng must be one of 'free', 'shared', but is 'fixed'; choose",
    ),
}


@pytest.mark.parametrize(("build", "message"), ARGUMENTS.values(), ids=ARGUMENTS)
def test_bad_engine_arguments_are_refused(build, message):
    model = network()
    with pytest.raises(ArgumentError, match=message):
        build(model, torch.optim.SGD(model.parameters(), lr=0.1))


def test_something_that_is_no_optimizer_is_refused():
    with pytest.raises(
        ParameterError, match=r"optimizer must be a torch\.optim\.Optimizer, but is a list without any; pass the opt"
    ):
        Engine(SAM(), network(), [])


# passes


def test_methods_that_need_the_batch_ask_for_it():
    engine = engine_of(method=SAMPa())
    with pytest.raises(UsageError, match=r"SAMPa keeps, cuts or reads batches.*engine.passes\(batch\)"):
        next(iter(engine.passes()))
    engine.backward(torch.ones(2, 3))


def test_micro_batches_and_passes_exclude_each_other():
    engine = engine_of(micro_batch=1)
    with pytest.raises(UsageError, match="micro_batch cuts what backward"):
        next(iter(engine.passes(torch.ones(2, 3))))
    engine.backward(torch.ones(2, 3))


def test_a_second_step_may_not_begin_within_the_first():
    engine = engine_of()
    for p in engine.passes(torch.ones(2, 3)):
        with pytest.raises(UsageError, match="already under way; finish or leave"):
            engine.backward(torch.ones(2, 3))
        with p:
            p.backward(per_example(engine.model, p.batch))
    assert engine.step == 1


def skipped(engine, p):
    """Does not run the pass."""


def empty(engine, p):
    with p:
        pass


def failing(engine, p):
    with p:
        raise ZeroDivisionError("mine")


def wrong(engine, p):
    with p:
        p.backward(engine.model(p.batch))


@pytest.mark.parametrize(
    ("body", "kind", "message"),
    [
        (skipped, UsageError, "a pass was not run; write: for p in engine.passes"),
        (empty, UsageError, "a pass ended without a loss; call p.backward"),
        (failing, ZeroDivisionError, "mine"),
        (wrong, LossError, "loss_fn must return"),
    ],
)
@pytest.mark.parametrize("method", [SAM(), LookSAM()])
def test_a_bad_pass_takes_the_step_back_at_once(body, kind, message, method):
    engine = engine_of(method=method)
    engine.backward(torch.ones(2, 3))
    grads, memory = [p.grad for p in engine.params], dict(engine.memory)
    passes = engine.passes(torch.ones(2, 3))  # kept alive: closing must not depend on the garbage collector
    with pytest.raises(kind, match=message):  # noqa: PT012 - the loop is what is tested
        for p in passes:
            body(engine, p)
    assert [p.grad for p in engine.params] == grads
    assert all(engine.memory[k] is v for k, v in memory.items())
    engine.backward(torch.ones(2, 3))
    assert engine.step == 2


def test_leaving_the_loop_takes_the_step_back():
    engine = engine_of()
    engine.backward(torch.ones(2, 3))
    weights, grads = [p.detach().clone() for p in engine.params], [p.grad for p in engine.params]

    def leave():
        for p in engine.passes(torch.ones(2, 3)):
            with p:
                p.backward(per_example(engine.model, p.batch))
            break

    with pytest.warns(UserWarning, match="left before its end"):
        leave()
    assert [p.grad for p in engine.params] == grads
    assert all(torch.equal(p, w) for p, w in zip(engine.params, weights, strict=True))
    engine.backward(torch.ones(2, 3))
    assert engine.step == 2
