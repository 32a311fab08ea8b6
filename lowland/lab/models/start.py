"""Weights from which a training starts: those of a finished run, or those in a file."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

from lowland.core.errors import ArgumentError, DataError, MissingExtraError
from lowland.runs.file import RUN_FILE
from lowland.runs.reader import read
from lowland.runs.record import RunRecord


def run_of(start: str) -> RunRecord | None:
    """The run in the folder ``start``, or among whose checkpoints the file ``start`` is; None if there is none.

    Raises:
        ArgumentError: ``start`` is a folder, and the run has not finished or has diverged, or its evaluated weights are
            a moving average, which only checkpoints have.
        DataError: The run file is damaged.
    """
    given = Path(start).expanduser()
    place = _folder_of(given)
    if place is None:
        return None
    record = read(place)
    if given.is_file():
        return record
    if record.end is None:
        raise ArgumentError(f"start must be a finished run, but {place} has not finished; go on with it first")
    if record.end.diverged:
        raise ArgumentError(f"start must be a run that has learned, but {place} diverged; take a lower learning rate")
    if record.recipe.get("ema") is not None:
        raise ArgumentError(
            f"start must be a run without a moving average of the weights, but {place} has ema="
            f"{record.recipe['ema']}; train it without ema"
        )
    return record


def _folder_of(start: Path) -> Path | None:
    """The folder of a run: ``start`` itself, or the one that has this file of weights among its checkpoints."""
    places = [start]
    if start.is_file():  # RUN/checkpoints/step-000000100/weights.safetensors, or a link to it
        places = list(start.resolve().parents[1:3])
    return next((place for place in places if (place / RUN_FILE).is_file()), None)


def weights_file(start: str, command: str) -> Path:
    """The file of the weights of a finished run, or ``start`` itself if it is a file.

    Args:
        start: A run folder, or a safetensors file.
        command: The command that makes such a run, for error messages.

    Raises:
        ArgumentError: There is neither, or the run has not finished.
    """
    place, record = Path(start).expanduser(), run_of(start)
    if record is not None and record.end is not None and place.is_dir():
        place = place / "checkpoints" / f"step-{record.end.step:09d}" / "weights.safetensors"
    if not place.is_file():
        raise ArgumentError(
            f"start must be a finished run or a file of weights, but {place} is not there; make a run with: {command}"
        )
    return place


def head_of(model: nn.Module, outputs: int) -> str:
    """The name of a model's head: its last linear layer, which must have as many outputs as there are classes.

    Raises:
        ArgumentError: The model has no such layer.
    """
    layers: dict[str, int] = {
        name: layer.out_features for name, layer in model.named_modules() if isinstance(layer, nn.Linear)
    }
    last = next(reversed(layers), None)
    if last is None or layers[last] != outputs:
        raise ArgumentError(
            f"the last linear layer of the model must have {outputs} outputs, one for each class, so that it is known "
            f"as the head that is not transferred, but {type(model).__name__} has no such layer; take another model"
        )
    return last


def start_from(model: nn.Module, content: bytes, outputs: int, place: Path) -> None:
    """Load all weights but those of the head, which stay as they are.

    Args:
        model: A new model.
        content: The contents of a safetensors file with all the model's parameters and buffers.
        outputs: The number of outputs of the head.
        place: The path of the file, for error messages.

    Raises:
        ArgumentError: The weights are those of another model, or the model has no head.
        DataError: The file is no safetensors file.
    """
    saved = _tensors(content, place)
    head = f"{head_of(model, outputs)}."
    infinite = sorted(n for n, t in saved.items() if t.is_floating_point() and not bool(t.isfinite().all()))
    if infinite:
        raise ArgumentError(
            f"the weights in {place} must be finite, but {infinite[0]} is not, as after a training that diverged; take "
            "another run"
        )
    own = model.state_dict()
    body = {name for name in own if not name.startswith(head)}
    others = {name for name in saved if not name.startswith(head)}
    wrong = sorted(n for n in body | others if n not in own or n not in saved or own[n].shape != saved[n].shape)
    if wrong:
        raise ArgumentError(
            f"model must be the one whose weights are in {place}, apart from its head, but {wrong[0]} is missing or "
            "has another shape; give --model the model that was pre-trained"
        )
    with torch.no_grad():
        for name in body:
            own[name].copy_(saved[name])


def _tensors(content: bytes, place: Path) -> dict[str, Tensor]:
    try:
        from safetensors import SafetensorError
        from safetensors.torch import load
    except ImportError:
        raise MissingExtraError("safetensors", "lab") from None
    try:
        tensors: dict[str, Tensor] = load(content)
    except SafetensorError as error:
        raise DataError(
            f"{place} must be a safetensors file, but cannot be read ({error}); name another file"
        ) from None
    return tensors
