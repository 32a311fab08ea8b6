"""Checks and converts the arguments of an engine: modules, optimizers, loss function and options."""

from __future__ import annotations

import functools
import inspect
import random
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from torch import nn
from torch.optim import Optimizer

from lowland.core import checks
from lowland.core.criterion import Criterion
from lowland.core.errors import ArgumentError, ParameterError, UsageError
from lowland.engine import lookahead
from lowland.executors.base import Executor, Work
from lowland.methods.base import Method

if TYPE_CHECKING:
    from lowland.engine import Engine


def one_module(model: Any) -> nn.Module:
    """Combine a module, or a list, tuple or dict of modules, to one module.

    Raises:
        ArgumentError: ``model`` has another type, is empty, or contains something other than modules.
    """
    remedy = "pass the model, or several modules as a list, tuple or dict"
    if isinstance(model, nn.Module):
        return model
    if not isinstance(model, list | tuple | dict):
        raise ArgumentError(f"model must be a torch.nn.Module, but is a {type(model).__name__}; {remedy}")
    parts = dict(_parts(model))
    if not parts:
        raise ArgumentError(f"model must hold at least one torch.nn.Module, but is {model!r}; {remedy}")
    for key, part in parts.items():
        if not isinstance(part, nn.Module):
            raise ArgumentError(f"model[{key!r}] must be a torch.nn.Module, but is a {type(part).__name__}; {remedy}")
    try:
        return nn.ModuleDict(model) if isinstance(model, dict) else nn.ModuleList(model)
    except (KeyError, TypeError) as error:
        raise ArgumentError(
            f"the keys of model must be names that nn.ModuleDict takes, but {error}; give other names, or a list"
        ) from error


def all_optimizers(optimizer: Any) -> list[Optimizer]:
    """The torch optimizers in an argument: of one optimizer or wrapper, or of a list or tuple of them.

    Raises:
        ParameterError: An entry is no optimizer, an optimizer is listed twice, or there is none.
        UsageError: An optimizer of accelerate steps after several micro-batches.
    """
    entries = list(optimizer) if isinstance(optimizer, list | tuple) else [optimizer]
    for entry in entries:
        accelerated = type(entry).__name__ == "AcceleratedOptimizer"
        count = getattr(getattr(entry, "gradient_state", None), "num_steps", 1) if accelerated else 1
        if count > 1:
            raise UsageError(
                f"optimizer must step after every engine.backward, but accelerate's steps after {count} micro-batches, "
                f"so that an undivided loss would give a gradient {count} times too long; use "
                "lowland.integrations.accelerate.Sharpness, or pass optimizer.optimizer and divide the loss"
            )
    optimizers = [lookahead.unwrap(o) for o in entries]
    if not optimizers:
        raise ParameterError(
            f"optimizer must be a torch.optim.Optimizer, but is a {type(optimizer).__name__} without any; pass the "
            "optimizer that holds the model's parameters"
        )
    if len(set(map(id, optimizers))) < len(optimizers):
        raise ParameterError("optimizer must hold different optimizers, but one is there twice; pass each once")
    return optimizers


def bound(loss_fn: Callable[[Any, Any], Any] | None, model: Any) -> Callable[[Any, Any], Any] | None:
    """Make a loss function that calls ``loss_fn`` with the caller's list, tuple or dict of modules.

    The engine calls loss functions with the one module that :func:`one_module` returns. If ``model`` is a module, this
    returns ``loss_fn`` itself.

    Returns:
        The loss function. It raises a ParameterError if a module was replaced, added or removed since.
    """
    if loss_fn is None or isinstance(model, nn.Module):
        return loss_fn
    if isinstance(loss_fn, Criterion):  # stays in two parts, of which the first calls the model
        return replace(loss_fn, forward=bound(loss_fn.forward, model) or loss_fn.forward)
    # No closure: a copy of the engine, also by pickle, gets the copies of the modules.
    return functools.partial(_with_modules, loss_fn=loss_fn, model=model, known=dict(_parts(model)))


def _with_modules(_: nn.Module, batch: Any, *, loss_fn: Callable[[Any, Any], Any], model: Any, known: Any) -> Any:
    """The loss of the caller's modules, in place of the engine's module."""
    current = dict(_parts(model))
    changed = [key for key in {**known, **current} if known.get(key) is not current.get(key)]
    if changed:
        raise ParameterError(
            f"the modules must stay those the engine was made with, but model[{changed[0]!r}] was exchanged, added "
            "or removed since; make a new Engine from all modules"
        )
    return loss_fn(model, batch)


def has_several(loss_fn: Any) -> bool:
    """Whether :func:`bound` has made the loss function for several modules."""
    inner = loss_fn.forward if isinstance(loss_fn, Criterion) else loss_fn
    return isinstance(inner, functools.partial) and inner.func is _with_modules


def _parts(model: Any) -> Iterable[tuple[Any, Any]]:
    return model.items() if isinstance(model, dict) else enumerate(model)


def check_method(method: Any) -> None:
    """Refuse a value that is not a method.

    Raises:
        ArgumentError: It is a class, or another object.
    """
    if isinstance(method, type) and issubclass(method, Method):
        raise ArgumentError(f"method must be a Method, but is the class; pass a value such as {method.__name__}()")
    if not isinstance(method, Method):
        raise ArgumentError(f"method must be a Method, but is {method!r}; pass a value such as SAM(rho=0.05)")
    for name, count, usual in (("plan", 2, "(self, engine, batch)"), ("init", 1, "(self, params)")):
        try:
            inspect.signature(getattr(method, name)).bind(*[None] * count)
        except TypeError as error:
            raise ArgumentError(
                f"{name} of a method must take {usual}, but that of {type(method).__name__} cannot be called so "
                f"({error}); write: def {name}{usual}"
            ) from None


def check_loss_fn(loss_fn: Any) -> None:
    """Refuse a value that cannot be called as ``loss_fn(model, batch)``.

    Raises:
        ArgumentError: It is not callable, takes other arguments, or is a loss of ``torch.nn``.
    """
    if loss_fn is None:
        return
    remedy = "write: def loss_fn(model, batch): return cross_entropy(model(batch[0]), batch[1])"
    if not callable(loss_fn):
        raise ArgumentError(f"loss_fn must be a function (model, batch) -> loss, but is {loss_fn!r}; {remedy}")
    inside = loss_fn
    while isinstance(inside, functools.partial) and not inside.args:
        inside = inside.func
    name = getattr(inside, "__name__", type(inside).__name__)
    kinds = (type(inside).__module__ or "", getattr(inside, "__module__", None) or "")
    if isinstance(loss_fn, type) or any(k in ("torch.nn.modules.loss", "torch.nn.functional") for k in kinds):
        raise ArgumentError(
            f"loss_fn must be a function (model, batch) -> loss, but {name} does not take a model and a batch; {remedy}"
        )
    reason = checks.call_error(loss_fn, 2)
    if reason is not None:
        raise ArgumentError(f"loss_fn must be a function (model, batch) -> loss, but {name}{reason}; {remedy}")


def check_scaler(scaler: Any) -> None:
    """Refuse a value that is neither a GradScaler nor None.

    Raises:
        ArgumentError: It has no methods ``scale`` and ``is_enabled``.
    """
    if scaler is not None and not all(callable(getattr(scaler, k, None)) for k in ("scale", "is_enabled")):
        raise ArgumentError(
            f"scaler must be a torch.amp.GradScaler or None, but is {scaler!r}; pass the scaler itself, whose "
            "step(optimizer) the training calls"
        )


def generator(seed: Any) -> random.Random:
    """Make the random number generator of a method.

    Raises:
        ArgumentError: The seed is not an integer. None would give different numbers on every rank and in every run.
    """
    if isinstance(seed, bool) or not isinstance(seed, int):
        raise ArgumentError(f"seed must be an integer, but is {seed!r}; give a number, such as seed=0")
    return random.Random(seed)


def check_options(scaler: Any, executor: Any, micro_batch: Any, rng: Any, flags: Mapping[str, Any]) -> None:
    """Refuse invalid options of an engine.

    Raises:
        ArgumentError: An option has the wrong type or value.
    """
    check_scaler(scaler)
    for name, value in flags.items():
        check_flag(name, value)
    if executor is not None and executor != "auto" and not isinstance(executor, Executor):
        raise ArgumentError(
            f'executor must be an Executor or "auto", but is {executor!r}; pass "auto", or a value such as Batched()'
        )
    if micro_batch is not None:
        checks.integer("micro_batch", micro_batch, 1, "None sets no limit")
    checks.one_of("rng", rng, ("free", "shared"))


def check_exchanged(work: Work, groups: Mapping[str, Any]) -> None:
    """Refuse gradients that ranks of a mesh would exchange in bf16 or fp16 after they were divided by a loss scale.

    Raises:
        ParameterError: The parameters are in bf16 or fp16, and there are a probe mesh and a scaler.
    """
    if work.low and work.scaler is not None and "probe" in groups:
        raise ParameterError(
            "parameters in bf16 or fp16 must have no scaler on a probe mesh, because gradients are exchanged in their "
            "precision, in which divided ones are rounded; leave the scaler out, or keep fp32 weights under autocast"
        )


def check_flag(name: str, value: Any) -> None:
    """Refuse a value that is neither True nor False.

    Raises:
        ArgumentError: It is another value.
    """
    if not isinstance(value, bool):
        raise ArgumentError(f"{name} must be True or False, but is {value!r}; choose one of these")


def check_closure_free(optimizers: list[Optimizer]) -> None:
    """Refuse optimizers whose ``step`` calls the closure itself, such as LBFGS.

    Raises:
        UsageError: An optimizer calls the closure itself.
    """
    for optimizer in optimizers:
        if lookahead.needs_closure(optimizer):
            kind = type(optimizer).__name__
            raise UsageError(
                f"ClosureOptimizer calls the closure once for every pass, but {kind}.step calls it itself; without "
                f"ClosureOptimizer, call {kind}.step(closure) with a closure that zeroes the gradients, calls "
                "engine.backward(batch) and returns the loss"
            )


def check_chosen(method: Method, selected: Callable[[Any], list[bool]], group_radii: Callable[[], list[Any]]) -> None:
    """Refuse a ``select`` of the method, or of a method inside it, that selects no parameter to perturb.

    Args:
        method: The method.
        selected: A function from a geometry to the parameters that it accepts.
        group_radii: A function to the radius of each parameter's group; None for a group without ``"rho"``.

    Raises:
        ParameterError: ``select`` accepts no parameter, or only parameters in groups with ``rho=0``.
    """
    for value in vars(method).values():
        if isinstance(value, Method):
            check_chosen(value, selected, group_radii)
    if method.geometry.select is None:
        return
    chosen = selected(method.geometry)
    if not any(chosen):
        raise ParameterError(
            f"geometry.select must accept at least one parameter, but rejects all, so {method.kind} would perturb "
            "nothing; correct select, or use rho=0 to train without a perturbation"
        )
    if method.rho != 0 and all(r == 0 and r is not None for r, c in zip(group_radii(), chosen, strict=True) if c):
        raise ParameterError(
            f"geometry.select must accept a parameter that is perturbed, but all it accepts are in groups with rho=0, "
            f"so {method.kind} would perturb nothing; correct select or the groups, or use rho=0 in the method"
        )


def check_fits(method: Method, engine: Engine) -> None:
    """Let a method, its geometry and the geometries of methods inside it refuse the model or the optimizer."""
    waiting = [method]
    for each in waiting:
        each.geometry.validate(engine)
        waiting += [value for value in vars(each).values() if isinstance(value, Method)]
    method.validate(engine)


@contextmanager
def to_the_end(engine: Engine) -> Iterator[None]:
    """Warn if a loop over passes is left before its end, which reverts the step."""
    try:
        yield
    except GeneratorExit:
        if engine.under_way:  # false after an exception in a pass, which needs no further warning
            warnings.warn(
                "the loop over engine.passes() was left before its end, so the step was taken back and .grad is as "
                "before; run all passes, without break",
                stacklevel=3,
            )
        raise
