"""Models as Flower's arrays: parameters and buffers by name."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import torch
from flwr.app import Array, ArrayRecord
from torch import Tensor, nn

from lowland.core.errors import ArgumentError


def arrays_of(model: nn.Module) -> ArrayRecord:
    """The parameters and buffers of a model, which a server sends and averages.

    Args:
        model: The model, on any device.

    Returns:
        An array for each entry of ``model.state_dict()``, with its shape and dtype.

    Raises:
        ArgumentError: An entry is no tensor, or has a dtype that NumPy does not have, such as bfloat16.
    """
    return ArrayRecord({name: Array(_numpy(name, value)) for name, value in model.state_dict().items()})


def load_arrays(model: nn.Module, arrays: ArrayRecord) -> None:
    """Copy arrays into the parameters and buffers of a model.

    Args:
        model: The model, on any device.
        arrays: The arrays, as :func:`arrays_of` makes them.

    Raises:
        ArgumentError: Names, shapes or dtypes differ from the model's.
    """
    own = arrays_of(model)
    difference = differing(own, arrays)
    if difference is not None:
        raise ArgumentError(
            f"arrays must be those of the model, but {difference}; let server and clients make the same model"
        )
    model.load_state_dict({name: torch.from_numpy(np.asarray(array.numpy())) for name, array in arrays.items()})


def differing(expected: ArrayRecord, given: ArrayRecord) -> str | None:
    """How the names, shapes or dtypes of two records differ, in words; None if they do not."""
    for name in {**expected, **given}:
        if name not in given:
            return f"{name} is missing"
        if name not in expected:
            return f"{name} is unknown"
        here, there = expected[name], given[name]
        if (tuple(here.shape), here.dtype) != (tuple(there.shape), there.dtype):
            return f"{name} is {there.dtype}{list(there.shape)} in place of {here.dtype}{list(here.shape)}"
    return None


def not_finite(arrays: ArrayRecord) -> str | None:
    """The name of the first array with a value that is NaN or infinite; None if all values are finite."""
    for name, array in arrays.items():
        values = array.numpy()
        if values.dtype.kind in "fc" and not np.isfinite(values).all():
            return str(name)
    return None


def like(arrays: ArrayRecord, sent: ArrayRecord) -> ArrayRecord:
    """Averaged arrays in the dtypes in which they were sent.

    Averages of integers, such as BatchNorm's count of batches, are rounded to the nearest integer.
    """
    return ArrayRecord({name: _cast(array, sent[name]) for name, array in arrays.items()})


def size_of(records: Iterable[ArrayRecord]) -> int:
    """The bytes of all arrays and their names, as Flower serializes them."""
    return sum(int(record.count_bytes()) for record in records)


def _cast(array: Array, sent: Array) -> Array:
    values, dtype = np.asarray(array.numpy()), np.dtype(sent.dtype)
    if values.dtype == dtype:
        return array
    return Array(np.asarray((values if dtype.kind in "fc" else np.rint(values)).astype(dtype)))


def _numpy(name: str, value: object) -> np.ndarray:
    if not isinstance(value, Tensor):
        raise ArgumentError(
            f"model.state_dict() must hold tensors, but {name} is a {type(value).__name__}, which no server can "
            "average; leave get_extra_state out of the model"
        )
    try:
        return value.detach().cpu().numpy()
    except TypeError as error:
        raise ArgumentError(
            f"{name} must have a dtype that NumPy has, but is {value.dtype}; keep parameters in float32 and train "
            "under autocast"
        ) from error
