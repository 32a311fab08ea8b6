"""Whether a step fits into the memory of a rank."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial

from lowland.core.errors import ArgumentError
from lowland.executors.mesh.shared_memory import wanted
from lowland.methods.base import Method
from lowland.planner import peak
from lowland.planner.calibration import cuttable, record
from lowland.planner.layout import Layout
from lowland.planner.subject import Subject

CUTS = (1, 2, 4)  # into how many micro-batches a rank's part is cut


def sizes_of(size: int | None, layout: Layout) -> list[int]:
    """A rank's part of the batch, and what methods and micro-batches make of it."""
    part = (size or 1) // layout.data
    fewest = 2 if part > 2 else 1  # batch normalization needs two examples
    sizes = sorted({max(part // cut, fewest) for cut in CUTS})
    if size is None:
        raise ArgumentError(
            "batch must be one that can be cut, so that times can be measured at two sizes, but its examples are not "
            "known; pass tensors, or a tuple, list or mapping of them, or Engine(…, cut=…)"
        )
    if len(sizes) < 2:
        raise ArgumentError(
            f"batch must have at least two examples, so that times can be measured at two sizes, but has {size}; pass "
            "a larger batch"
        )
    return sizes


def memory(subject: Subject, methods: Mapping[str, Method]) -> dict[str, Callable[[Layout], float]]:
    """For every method a function that gives the peak of a rank's memory in a layout, in bytes."""
    sizes, examples, recorded = sizes_of(subject.size, Layout()), subject.size or 1, record(subject)
    lines = peak.passes(subject, sizes)
    halves = [size for size in sizes if 2 * size <= examples] if cuttable(subject) else []
    cut = peak.passes(subject, halves, cut=True) if len(halves) > 1 else None
    shared = wanted(list(subject.model.parameters()))
    kept: dict[tuple[str, int, int], peak.Kept] = {}

    def of(text: str, layout: Layout) -> float:
        method, key = methods[text], (text, layout.width, layout.data)
        if key not in kept:
            part = examples // layout.data if layout.data > 1 else None
            kept[key] = peak.kept(subject, method, layout.width, recorded, part)
        synced = all(one.synced for one, _ in kept[key].passes if one.tensors)
        more = peak.exchanged(layout, synced=synced, shared=shared) * subject.parameters
        return kept[key].peak(lines, layout, examples, cut) + more

    return {text: partial(of, text) for text in methods}
