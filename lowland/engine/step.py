"""One step of an engine: its plan is run for whoever answers the probes, and its gradient put where it belongs."""

from __future__ import annotations

import operator
from collections.abc import Generator, Iterator
from contextlib import closing
from dataclasses import FrozenInstanceError
from typing import TYPE_CHECKING, Any, TypeAlias

import torch
from torch import Tensor

from lowland.core import vec
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
    """Run the plan for whoever answers its probes; on any exception, leave all as it was."""
    if engine.under_way:
        raise UsageError("a step is already under way; finish or leave the loop over engine.passes() first")
    _check_batch(engine, batch)
    engine.training.check(engine.step, engine.work.first, engine.ranks, engine.work.device)
    engine.parameters.check_unchanged(engine.step, engine.work.replicas.fsdp)
    before = dict(engine.memory), dict(engine.lagged.waiting), engine.rng.getstate()
    engine.work.replicas.check_covered()
    held = list(map(_GRAD, engine.params))
    empty = set(map(type, held)) <= {type(None)}
    done, eye = False, None
    engine.under_way = True
    early_steps.begin(engine)
    try:
        if not empty:
            for p in engine.params:
                p.grad = None
        engine.work.begin(engine.step)
        engine.executor.begin(batch)
        if engine.work.step.watched:
            keys = engine.vector_keys, engine.table_keys
            eye = watch.Watch(engine.method.kind, engine.work, engine.names, engine.memory, *keys)
        result, count, aux = yield from _converse(engine, engine.method.plan(engine, batch), batch, eye)
        loss, grad = plans.result(engine.method.kind, result, engine.params, each=eye is not None)
        if engine.executor.substitutes or not all(engine.work.step.reached):
            engine.parameters.check_unreached(engine.work.replicas.fsdp)
        plans.same_keys(engine.method.kind, before[0], engine.memory)
        if eye is not None:
            eye.check(engine.memory, grad)
        if engine.work.replicas.groups:
            loss, grad = engine.work.replicas.conclude(engine.work, loss, grad, count, engine.later)
        _fill(engine, None if empty else held, grad, before[0])
        done = True
    finally:
        engine.under_way = False
        early_steps.end(engine)
        if not done:
            engine.memory, engine.lagged.waiting = before[0], before[1]
            if eye is not None:
                eye.undo()
            engine.rng.setstate(before[2])
            for p, h in zip(engine.params, held, strict=True):
                p.grad = h
    engine.executor.end()
    engine.step += 1
    engine.work.first = False
    engine.loss, engine.aux = loss, aux[0] if len(aux) == 1 else aux or None
    return loss


def _check_batch(engine: Engine, batch: Any) -> None:
    """Refuse a batch that is missing, or can be read once only."""
    if batch is None and engine.method.needs_batch:
        raise UsageError(
            f"{engine.method.kind} keeps or cuts batches, which a closure hides; "
            "call engine.backward(batch) or engine.passes(batch)"
        )
    if isinstance(batch, Iterator):
        raise BatchError(
            f"a batch must be the same in all passes, but is a {type(batch).__name__}, an iterator, which can be read "
            "once; take the batch out of it first: engine.backward(next(iterator))"
        )


def _converse(
    engine: Engine, plan: Plan, batch: Any, eye: watch.Watch | None
) -> Generator[tuple[Probe, ...], tuple[Reading, ...], tuple[Any, Tensor | None, list[Any]]]:
    """What the plan returns; the count of losses that only this rank has seen; aux of the passes that report."""
    kept, aux, count = list(engine.memory.values()), [], None
    readings: tuple[Reading, ...] | None = None
    asked: tuple[Probe, ...] | None = None
    with closing(conversation(plan)) as talk:
        try:
            while True:
                asked, readings = _ask(engine, talk, readings, eye), None
                for probe in asked:
                    plans.chosen(engine.method.kind, probe, engine.params)
                    probe.compare(batch, kept)
                readings = yield asked
                assert readings is not None
                for probe, reading in zip(asked, readings, strict=True):
                    if probe.stats and reading.aux is not None:
                        aux.append(reading.aux)
                    if probe.stats and not probe.sync and isinstance(reading.divisor, Tensor):
                        count = reading.divisor if count is None else count + reading.divisor
                del probe, reading
        except StopIteration as done:
            if asked is None:
                raise plans.unasked(engine.method.kind) from None
            return done.value, count, aux


def _ask(
    engine: Engine,
    talk: Generator[tuple[Probe, ...], Any, Any],
    readings: tuple[Reading, ...] | None,
    eye: watch.Watch | None,
) -> tuple[Probe, ...]:
    """Let the plan go on to its next probes, and look whether it has left the weights alone.

    Where steps are not watched, this is asked of plans alone that are not lowland's own.
    """
    others = eye is None and not type(engine.method).__module__.startswith("lowland.methods.")
    mark = Mark(engine.work, each=True) if others else None
    if eye is not None:
        eye.leave()
    try:
        with early_steps.planning(engine):
            asked = talk.send(readings)
    except StopIteration:
        _look(engine, eye, mark)
        raise
    except (KeyError, FrozenInstanceError) as error:
        plans.explain(engine.method, engine.memory, error)
        raise
    _look(engine, eye, mark)
    return asked


def _look(engine: Engine, eye: watch.Watch | None, mark: Mark | None) -> None:
    if eye is not None:
        eye.back()
    if mark is not None and (written := mark.moved()):
        raise watch.moved(engine.method.kind, engine.names[written[0]])


def _fill(engine: Engine, held: list[Tensor | None] | None, grad: Vec, before: dict[str, Any]) -> None:
    """Put the step's gradient where the optimizer looks for it; ``held`` is what was there, None for nothing."""
    scale = engine.work.scale()
    finite = engine.work.step.finite
    if scale is not None and finite is not None:
        # NaN reaches every parameter, so that the scaler sees it and skips the step.
        grad = vec.scale(grad, torch.where(finite, scale, torch.full_like(scale, float("nan"))))
        state.keep_where_finite(engine, finite, before)
    # The caller clips and unscales .grad in place, which must not reach a vector in memory.
    if engine.memory:
        kept = watch.held(engine.memory)
        if not kept.isdisjoint(map(id, grad)):
            grad = [g.clone() if id(g) in kept else g for g in grad]
    if held is None and all(engine.work.step.reached):  # the usual step, one assignment for each parameter
        for p, g in zip(engine.params, grad, strict=True):
            p.grad = g
        return
    for p, h, g, reached in zip(engine.params, held or [None] * len(grad), grad, engine.work.step.reached, strict=True):
        if not reached:
            p.grad = h
        elif h is None:
            p.grad = g
        else:
            p.grad = h.add_(g)
