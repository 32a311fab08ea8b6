"""Compares, in watched steps, what several probes give in one pass with what they give one after the other."""

from __future__ import annotations

import copy
import math
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import pairwise

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor
from torch.nn.modules.dropout import _DropoutNd

from lowland.core import shards
from lowland.core.errors import LowlandError, UsageError
from lowland.core.probe import Probe, Reading
from lowland.core.vec import Vec
from lowland.executors import modes
from lowland.executors.base import Work
from lowland.executors.local import Local
from lowland.executors.places import Weights
from lowland.executors.together import Batch, answer_together
from lowland.executors.witness import Precision, Witness

SLACK = 4.0  # how many times the root of the precision the readings may differ: rounding adds up in another order


def check_agreement(work: Work, probes: tuple[Probe, ...], batch: Batch) -> None:
    """Answer probes in one pass and one after the other, with the same random numbers, and compare the readings.

    Dropout layers are left out unless the engine has ``rng="shared"``. If the model still draws random numbers then,
    whose order may differ, the readings are not compared. All effects on buffers, random numbers, statistics and the
    step's record are taken back. The probes are spent.

    Raises:
        UsageError: The readings differ, or only the pass for all probes fails.
    """
    if any(isinstance(p, FakeTensor) for p in work.params):
        return  # values cannot be compared
    _refuse_shared_memory(work)
    precision, (first, second), free = Precision(), twins(probes, 2), work.rng is None
    with modes_kept(work), _on_trial(work) as random:
        for m in modes.modules_of(work.model):
            if free and isinstance(m, _DropoutNd):
                m.training = False  # its masks differ
        failed: Exception | None = None
        try:
            with work.buffers.passing(first[0]), work.buffers.untouched():
                found = answer_together(work, first, batch, Witness(Weights(work.model)))
        except LowlandError:
            raise
        except Exception as error:
            failed = error
        try:
            with precision:
                # Each alone, so that it draws from the stream that tells whether it has drawn.
                expected = [Local().run(work, (probe,))[0] for probe in second]
        except Exception:
            if failed is not None:  # a mistake of the user's, not vmap's
                raise failed from None
            raise
        drawn = random.moved()
    if failed is not None:
        raise UsageError(
            "forward and loss_fn must run under torch.func.vmap with Batched, which lets no probe write in place what "
            f"all of them share, but only there torch says: {failed}; use executor=Local()"
        ) from failed
    for i, pair in enumerate(zip(found, expected, strict=True)) if not (free and drawn) else ():
        _compare(work, i, *pair, precision.coarsest)


@contextmanager
def _on_trial(work: Work) -> Iterator[modes.SharedRNG]:
    """The context of passes that leave no trace, all with the same random numbers, which the value rewinds."""
    step, rng, shared = work.step, work.rng, modes.SharedRNG(work.device)
    work.step = copy.copy(step)
    try:
        with modes.branch(work.device, 0), modes.traceless(), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the passes that count give them
            shared.begin(work.buffers.generators)
            shared.rewind()
            work.rng = shared
            try:
                yield shared
            finally:
                shared.rewind()
    finally:
        work.step, work.rng = step, rng


@contextmanager
def modes_kept(work: Work) -> Iterator[None]:
    """Set each module to its mode, training or evaluation, at the end: a forward that failed may have changed it."""
    before = [(m, m.training) for m in modes.modules_of(work.model)]
    try:
        yield
    finally:
        for m, training in before:
            if m.training is not training:
                m.training = training


def twins(probes: tuple[Probe, ...], count: int, *, last: bool = False) -> list[tuple[Probe, ...]]:
    """Copies of probes, which are spent; displacements are computed once.

    Args:
        probes: The probes.
        count: The number of copies.
        last: Whether the last copy keeps its trace in the statistics; the others have none.
    """
    displacements: list[Vec | None] = []
    for p in probes:
        taken = None if p.at is None else p.take_at()
        displacements.append(None if taken is None else list(taken))
        if taken is not None:
            taken.clear()  # a probe is asked once
    result = []
    for number in range(1, count + 1):
        copies = tuple(copy.copy(p) for p in probes)
        for twin, at in zip(copies, displacements, strict=True):
            object.__setattr__(twin, "at", None if at is None else list(at))
            object.__setattr__(twin, "stats", twin.stats and last and number == count)
        result.append(copies)
    return result


def _refuse_shared_memory(work: Work) -> None:
    """Refuse parameters that share memory: in one pass each is displaced alone, one after the other both move."""
    spans = sorted((*span, i) for i, p in enumerate(work.params) if (span := shards.span(p)) is not None)
    for (storage, _, end, i), (other, start, _, j) in pairwise(spans):
        if storage == other and start < end:
            raise UsageError(
                "parameters must lie in memory of their own under Batched, which displaces copies of them, but these "
                f"share memory: {work.named([i, j])}; use executor=Local()"
            )


def _compare(work: Work, number: int, found: Reading, expected: Reading, coarsest: float) -> None:
    """Refuse a reading that differs by more than rounding.

    A mean may be small by cancellation, so it is compared with what a change of the weights' own size would make of
    it, and a gradient likewise.
    """
    eps = max(coarsest, *(torch.finfo(p.dtype).eps for p in work.params))
    if work.device.type != "cpu" and eps < 2**-10 and any(p.dtype is torch.float32 for p in work.params):
        eps = 2**-10  # of TF32
    near = SLACK * math.sqrt(eps)
    assert found.grad is not None
    assert expected.grad is not None
    loss, slope, weight = abs(float(expected.loss)), _norm(expected.grad), _norm(work.params)
    limits = {
        "loss": (abs(float(found.loss) - float(expected.loss)), near * (loss + slope * weight)),
        "gradient": (
            _norm([a - b for a, b in zip(found.grad, expected.grad, strict=True)]),
            near * (slope + near * loss / max(weight, eps)),
        ),
    }
    for name, (difference, limit) in limits.items():
        if math.isfinite(limit) and not difference <= limit:
            raise UsageError(
                "forward and loss_fn must compute under torch.func.vmap what they compute without, but with Batched "
                f"the {name} of probe {number} differs by {difference:.3g}, and may differ by {limit:.1g} for "
                "rounding; code may ask a tensor for requires_grad or for its class, or draw random numbers in another "
                "order under vmap; use executor=Local()"
            )


def _norm(v: Sequence[Tensor] | Vec) -> float:
    with torch.no_grad():
        return math.sqrt(sum(float(t.double().square().sum()) for t in v))
