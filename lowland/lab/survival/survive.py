"""Measures how trained models survive changes of their weights, and keeps the values beside their run files."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TypeAlias

from torch import nn

from lowland.core.errors import ArgumentError
from lowland.lab.survival.changes import Figures, Judge, changes_of
from lowland.lab.survival.settings import Survival
from lowland.lab.survival.table import Table
from lowland.lab.survival.weights import deployed, restored
from lowland.lab.training.trained import Trained, load_run
from lowland.runs.measures import Measure, append, read

Progress: TypeAlias = Callable[[int, int, str], None]  # the changes measured so far, all of them, and the next one


def survive(
    run: Trained | str | Path,
    wanted: Survival | None = None,
    *,
    again: bool = False,
    progress: Progress | None = None,
) -> tuple[Measure, ...]:
    """Measure how a trained model survives changes of its weights, and append the values to the run's measures.

    Each value is written when it is known, and values with equal settings are not measured again, so an interrupted
    measurement goes on where it was. The model of the run never changes; its copy is restored after each change.

    Args:
        run: A finished run, or its folder.
        wanted: The changes and the settings; by default those of :class:`Survival`.
        again: Measure again what is already known.
        progress: A function that is called before each change.

    Returns:
        All values of these changes, measured now or earlier.

    Raises:
        ArgumentError: The training diverged, the model has no weights that can be quantized, or a setting does not fit
            it.
        StateError: The folder has no finished run with its weights.
    """
    trained, wanted = run if isinstance(run, Trained) else load_run(run), wanted or Survival()
    folder, sha = trained.record.path.parent, trained.record.end.weights_sha256 if trained.record.end else ""
    if trained.record.end is None or trained.record.end.diverged:
        raise ArgumentError(f"runs must have trained models, but {folder} diverged; leave it out")
    judge = Judge(trained, wanted)
    table = Table(judge, sha)
    known = set() if again else {measure.key for measure in read(folder, sha)}
    changes = changes_of(judge)
    missing = [c for c in changes if not {m.key for m in table.measures(c)} <= known]
    if missing:
        model = deployed(trained.model)
        with restored(model):
            before = judge.figures(model)
        for number, change in enumerate(missing):
            if progress is not None:
                progress(number, len(missing), change.label)
            after = [_measured(model, draw) for draw in change.draws]
            append(folder, table.measures(change, before, after))
    keys = {m.key for change in changes for m in table.measures(change)}
    return tuple(measure for measure in read(folder, sha) if measure.key in keys)


def _measured(model: nn.Module, draw: Callable[[nn.Module], Figures]) -> Figures:
    with restored(model):
        return draw(model)
