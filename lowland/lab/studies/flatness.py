"""Measures the flatness of finished runs, and writes it beside their run files."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Protocol

from torch import Tensor

from lowland.core import checks
from lowland.core.errors import ArgumentError, StateError
from lowland.lab.studies.gauges import GROUP, NAMES, Flatness, Gauge, Gauges
from lowland.lab.training.trained import Trained, load_run
from lowland.parallel import ranks
from lowland.report.grouping import groups, unlike
from lowland.runs import landscape, measures
from lowland.runs.landscape import Curve
from lowland.runs.measures import Measure
from lowland.runs.record import EndRecord, RunRecord
from lowland.sharpness.hessian import curvlinops

__all__ = ["NAMES", "Flatness", "Progress", "check", "measure_runs"]


class Progress(Protocol):
    """Shows the progress of the measurements."""

    def begin(self, text: str) -> None:
        """Show that a measurement begins, which may take minutes."""

    def end(self, text: str) -> None:
        """Show the result of a measurement, or why a run is left out."""


def measure_runs(
    records: Sequence[RunRecord],
    flatness: Flatness,
    progress: Progress,
    *,
    data: Path | None = None,
    device: str = "auto",
    again: bool = False,
) -> int:
    """Measure the final weights of runs; each value is written to the run's folder as soon as it is there.

    A value that is there already, of the same weights and with equal settings, is kept. Runs that have not finished or
    have diverged are left out, and so are runs whose weights or task cannot be read any more.

    Args:
        records: The runs.
        flatness: What is measured.
        progress: Shows what is measured, kept and left out.
        data: The folder of the data files; None is the environment variable ``LOWLAND_DATA``.
        device: ``cpu``, ``cuda``, or ``auto`` for a GPU if there is one.
        again: Measure again what is there.

    Returns:
        The number of runs that were measured or kept.

    Raises:
        ArgumentError: A name or a number of ``flatness`` breaks its rule.
        MissingExtraError: A measure needs curvlinops, which is not installed.
    """
    check(flatness)
    bases = _baselines(records)
    count = 0
    for number, record in enumerate(records, 1):
        label = f"[{number}/{len(records)}] {record.run}"
        trained = _load(record, progress, label, data, device)
        if trained is None or record.end is None:
            continue
        count += 1
        baseline = _baseline(bases, record, progress, label, data, device) if "between" in flatness.measures else None
        _measure(trained, record.end, Gauges(trained, flatness, baseline), flatness, progress, label, again)
    return count


def check(flatness: Flatness) -> None:
    """Refuse what would be noticed only after minutes of measuring.

    Raises:
        ArgumentError: A name or a number breaks its rule, or there are several ranks.
        MissingExtraError: A measure needs curvlinops, which is not installed.
    """
    if ranks()[1] > 1:
        raise ArgumentError(
            f"sharpness is measured by a single process, but there are {ranks()[1]} ranks; run lowland sharpness "
            "without torchrun, after the trainings"
        )
    if not flatness.measures:
        raise ArgumentError(f"measures must name at least one measure, but is empty; known are {', '.join(NAMES)}")
    for name in flatness.measures:
        checks.one_of("measures", name, NAMES)
    checks.integer("examples", flatness.examples, 1, "2048 are usual")
    checks.integer("m", flatness.m, 1, "128 is usual")
    checks.integer("eigenvalues", flatness.eigenvalues, 1, "3 are usual")
    if {"eigenvalues", "trace", "density"} & set(flatness.measures):
        curvlinops()


def _load(record: RunRecord, progress: Progress, label: str, data: Path | None, device: str) -> Trained | None:
    """The run with its weights; None if it is left out."""
    if record.end is None:
        progress.end(f"{label}: left out, it has not finished")
    elif record.end.diverged:
        progress.end(f"{label}: left out, it has diverged")
    else:
        try:
            return load_run(record.path, data=data, device=device)
        except (StateError, ArgumentError) as error:  # its weights, its task or its model are no longer there
            progress.end(f"{label}: left out, {error}")
    return None


def _measure(
    trained: Trained,
    end: EndRecord,
    gauges: Gauges,
    flatness: Flatness,
    progress: Progress,
    label: str,
    again: bool,
) -> None:
    folder, weights = trained.record.path.parent, end.weights_sha256
    for name in dict.fromkeys(flatness.measures):
        for gauge in gauges.of(name):
            known = None if again else _known(folder, weights, gauge)
            if known is not None:
                progress.end(f"{label}: {known} (kept)")
                continue
            progress.begin(f"{label}: {', '.join(gauge.names)}")
            taken = gauge.take()
            measures.append(folder, [value for value in taken if isinstance(value, Measure)])
            for value in taken:
                if isinstance(value, Curve):
                    landscape.write(folder, value)
            progress.end(f"{label}: {_text(taken)}")


def _known(folder: Path, weights: str, gauge: Gauge) -> str | None:
    """The values of a measurement that the run's folder has already, as text."""
    settings = json.loads(json.dumps(gauge.settings))
    if gauge.curve:
        curve = landscape.read(folder, weights).get(gauge.names[0])
        return None if curve is None or curve.settings != settings else _text([curve])
    there = {m.name: m for m in measures.read(folder, weights) if m.group == GROUP and dict(m.settings) == settings}
    if not set(gauge.names) <= there.keys():
        return None
    return _text([there[name] for name in gauge.names])


def _text(taken: Sequence[Measure | Curve]) -> str:
    return ", ".join(value.kind if isinstance(value, Curve) else _value(value) for value in taken)


def _value(measure: Measure) -> str:
    if measure.value is None or measure.value != measure.value:
        return f"{measure.title} is not a number"
    error = "" if measure.error is None or measure.error != measure.error else f" ± {measure.error:.2g}"
    return f"{measure.title} {measure.value:.4g}{error}"


def _baselines(records: Sequence[RunRecord]) -> dict[Path, RunRecord]:
    """The plain run of the same seed and table for every run that has one; its own for the plain run."""
    found: dict[Path, RunRecord] = {}
    for members in groups(records).values():
        plain = [r for r in members if r.method.key == "plain" and "@" not in r.contestant]
        ended = {r.seed: r for r in plain if r.end is not None and not r.end.diverged}
        for record in members:
            base = ended.get(record.seed)
            if base is not None and ("@" in record.contestant or not unlike(record, base)):
                found.setdefault(record.path, base)
    return found


def _baseline(
    bases: Mapping[Path, RunRecord], record: RunRecord, progress: Progress, label: str, data: Path | None, device: str
) -> tuple[dict[str, Tensor], str] | None:
    """The weights of the baseline and their hash; None without one, and for the baseline itself."""
    base = bases.get(record.path)
    if base is None or base.end is None:
        progress.end(f"{label}: between left out, no plain run of its seed has finished among these runs")
        return None
    if base.contestant == record.contestant:
        return None
    trained = _load(base, progress, f"{label}: between", data, device)
    return None if trained is None else (trained.model.state_dict(), base.end.weights_sha256)
