"""One step of an engine: run the method's plan and write its gradient to ``.grad``."""

from __future__ import annotations

import operator
from collections.abc import Generator, Iterator
from contextlib import closing
from dataclasses import FrozenInstanceError
from random import Random
from typing import TYPE_CHECKING, Any, TypeAlias

import torch
from torch import Tensor

from lowland.core import precision, vec
from lowland.core.errors import BatchError, UsageError
from lowland.core.probe import Plan, Probe, Reading, conversation
from lowland.core.vec import Vec
from lowland.engine import early_steps, plans, state, watch
from lowland.executors.still import Mark

if TYPE_CHECKING:
    from lowland.engine import Engine

_GRAD = operator.attrgetter("grad")

Drive: TypeAlias = Generator[tuple[Probe, ...], tuple[Reading, ...], Tensor]


def drive(engine: Engine, batch: Any) -> Drive:
    """Run one step as a generator: it yields the plan's probes and is sent their readings.

    After an exception, memory, lagged values, random numbers and ``.grad`` are restored.

    Returns:
        The loss of the step.

    Raises:
        UsageError: A step is already in progress, or the plan is invalid.
        BatchError: The batch is an iterator.
    """
    if engine.under_way:
        raise UsageError("a step is already under way; finish or leave the loop over engine.passes() first")
    _check_batch(engine, batch)
    engine.training.check(engine.step, engine.work.first, engine.ranks, engine.work.device)
    engine.parameters.check_unchanged(engine.step, engine.work.replicas.fsdp)
    before = dict(engine.memory), dict(engine.lagged.waiting), engine.rng.getstate()
    engine.work.replicas.check_covered()
    earlier = list(map(_GRAD, engine.params))
    empty = set(map(type, earlier)) <= {type(None)}
    done, watcher = False, None
    engine.under_way = True
    early_steps.begin(engine)
    try:
        if not empty:
            for p in engine.params:
                p.grad = None
        engine.work.begin(engine.step)
        engine.executor.begin(batch)
        watcher = _watcher(engine)
        result, count, aux = yield from _run_plan(engine, engine.method.plan(engine, batch), batch, watcher)
        loss, grad = plans.result(engine.method.kind, result, engine.params, each=watcher is not None)
        del result
        if engine.executor.substitutes or not all(engine.work.step.reached):
            engine.parameters.check_unreached(engine.work.replicas.fsdp)
        plans.same_keys(engine.method.kind, before[0], engine.memory)
        if watcher is not None:
            watcher.check(engine.memory, grad, engine.work.examples.restored)
        if engine.work.replicas.groups:
            loss, grad = engine.work.replicas.conclude(engine.work, loss, grad, count, engine.later)
        _fill(engine, None if empty else earlier, grad, before[0])
        done = True
    finally:
        engine.under_way = False
        early_steps.end(engine)
        engine.work.examples.end(failed=not done)
        if not done:
            engine.memory, engine.lagged.waiting = before[0], before[1]
            if watcher is not None:
                watcher.restore()
            engine.rng.setstate(before[2])
            for p, h in zip(engine.params, earlier, strict=True):
                p.grad = h
    engine.executor.end()
    engine.step += 1
    engine.work.first = False
    engine.loss, engine.aux = loss, aux[0] if len(aux) == 1 else aux or None
    return loss


def _watcher(engine: Engine) -> watch.Watch | None:
    """The checks of the plan in a watched step; None in other steps."""
    if not engine.work.step.watched:
        return None
    keys = engine.vector_keys, engine.table_keys
    kind, foreign = engine.method.kind, engine.foreign_plan
    return watch.Watch(kind, engine.work, engine.names, engine.memory, *keys, foreign=foreign)


def _check_batch(engine: Engine, batch: Any) -> None:
    """Refuse a missing batch, and a batch that can be read only once.

    Raises:
        UsageError: The method needs a batch, and there is none.
        BatchError: The batch is an iterator.
    """
    if batch is None and engine.method.needs_batch:
        raise UsageError(
            f"{engine.method.kind} keeps, cuts or reads batches, which a closure hides; "
            "call engine.backward(batch) or engine.passes(batch)"
        )
    if isinstance(batch, Iterator):
        raise BatchError(
            f"a batch must be the same in all passes, but is a {type(batch).__name__}, an iterator, which can be read "
            "once; take the batch out of it first: engine.backward(next(iterator))"
        )


def _run_plan(
    engine: Engine, plan: Plan, batch: Any, watcher: watch.Watch | None
) -> Generator[tuple[Probe, ...], tuple[Reading, ...], tuple[Any, Tensor | None, list[Any]]]:
    """Run the plan as a generator of probes.

    Returns:
        The value that the plan returned; the count of the losses of unsynchronized probes, or None; and the auxiliary
        outputs of the passes that report.
    """
    in_memory, aux, count = list(engine.memory.values()), [], None
    noise = _noise(engine) if engine.work.low else None
    readings: tuple[Reading, ...] | None = None
    probes: tuple[Probe, ...] | None = None
    with closing(conversation(plan)) as running:
        try:
            while True:
                probes, readings = _continue(engine, running, readings, watcher), None
                for probe in probes:
                    plans.chosen(engine.method.kind, probe, engine.params)
                    probe.compare(batch, in_memory)
                    if noise is not None:
                        probe.draw(noise)
                readings = yield probes
                assert readings is not None
                if engine.method.needs_batch:  # the plan may copy or cut the batch now
                    engine.work.examples.restore()
                for probe, reading in zip(probes, readings, strict=True):
                    if probe.stats and reading.aux is not None:
                        aux.append(reading.aux)
                    if probe.stats and not probe.sync and isinstance(reading.divisor, Tensor):
                        count = reading.divisor if count is None else count + reading.divisor
                del probe, reading
        except StopIteration as done:
            if probes is None:
                raise plans.unasked(engine.method.kind) from None
            return done.value, count, aux


def _noise(engine: Engine) -> Random:
    """The generator of this step's seeds for stochastic rounding: the same on all ranks and after a resume.

    The method's own generator is not advanced, so that its choices do not depend on the dtype of the parameters.
    """
    here = Random()
    here.setstate(engine.rng.getstate())
    return Random(here.getrandbits(64) << 32 | engine.step)


def _continue(
    engine: Engine,
    running: Generator[tuple[Probe, ...], Any, Any],
    readings: tuple[Reading, ...] | None,
    watcher: watch.Watch | None,
) -> tuple[Probe, ...]:
    """Continue the plan to its next probes, and check that it has not written weights.

    In steps without a watcher, only the plans of methods outside lowland are checked.
    """
    mark = Mark(engine.work, each=True) if engine.foreign_plan and watcher is None else None
    if watcher is not None:
        watcher.resume()
    try:
        with early_steps.planning(engine):
            probes = running.send(readings)
    except StopIteration:
        _check_weights(engine, watcher, mark)
        raise
    except (KeyError, FrozenInstanceError) as error:
        plans.explain(engine.method, engine.memory, error)
        raise
    _check_weights(engine, watcher, mark)
    return probes


def _check_weights(engine: Engine, watcher: watch.Watch | None, mark: Mark | None) -> None:
    """Refuse a plan that has written weights since it was continued."""
    if watcher is not None:
        watcher.check_weights()
    if mark is not None and (written := mark.moved()):
        raise watch.moved(engine.method.kind, engine.names[written[0]])


def _fill(engine: Engine, earlier: list[Tensor | None] | None, grad: Vec, before: dict[str, Any]) -> None:
    """Add the step's gradient to ``.grad``.

    Args:
        engine: The engine.
        earlier: The gradients before the step; None if there was none.
        grad: The step's gradient.
        before: The memory before the step.
    """
    scale = engine.work.scale()
    finite = engine.work.step.finite
    if scale is not None and finite is not None:
        # After an overflow all gradients are NaN, so that the scaler skips the step.
        grad = vec.scale(grad, torch.where(finite, scale, torch.full_like(scale, float("nan"))))
        state.keep_where_finite(engine, finite, before)
    if engine.work.low:
        grad = [*grad] if engine.memory else grad  # the list itself may be in memory; else its entries are freed
        precision.narrow_(grad, engine.params)
    # The caller clips and unscales .grad in place, which must not change a vector in memory.
    if engine.memory:
        in_memory = watch.ids(engine.memory)
        if not in_memory.isdisjoint(map(id, grad)):
            grad = [g.clone() if id(g) in in_memory else g for g in grad]
    if earlier is None and all(engine.work.step.reached):  # the usual case: one assignment per parameter
        for p, g in zip(engine.params, grad, strict=True):
            p.grad = g
        return
    sums: list[tuple[Tensor, Tensor]] = []
    for p, h, g, reached in zip(
        engine.params, earlier or [None] * len(grad), grad, engine.work.step.reached, strict=True
    ):
        p.grad = g if reached and h is None else h
        if reached and h is not None:
            sums.append((h, g))
    if sums:
        vec.add_([h for h, _ in sums], [g for _, g in sums])
