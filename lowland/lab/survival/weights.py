"""Quantization and Gaussian noise of the weights of a copy of a trained model, and the copy's restoration."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import chain

import torch
from torch import nn
from torch.nn.utils import parametrize

from lowland.lab.data.streams import stream
from lowland.lab.quantize import Granularity, Target, quantized, targets
from lowland.lab.survival.settings import Norm


@torch.no_grad()
def deployed(model: nn.Module) -> nn.Module:
    """A copy whose linear and convolutional layers have the weights that their forward uses.

    Where a layer computes its weight from a parameter, as in quantization-aware training, the copy has the computed
    weight as its parameter. So changes of the copy are changes of the weights that would be deployed.
    """
    twin = copy.deepcopy(model)
    used = [(target, target.tensor.detach().clone()) for target in targets(twin)]
    for target, weight in used:
        if parametrize.is_parametrized(target.module, target.attribute):
            _own_class(target.module)
            parametrize.remove_parametrizations(target.module, target.attribute)
            if target.attribute not in target.module._parameters:  # as after weight_norm, which has two parameters
                delattr(target.module, target.attribute)
                target.module.register_parameter(target.attribute, nn.Parameter(weight))
            target.tensor.copy_(weight)
    return twin


def _own_class(module: nn.Module) -> None:
    """Give a parametrized layer a class of its own.

    Copies of a layer share the class that its parametrization has made. ``remove_parametrizations`` deletes the weight
    from this class, which would remove it from the trained model, too.
    """
    kind = type(module)
    entries = {name: value for name, value in vars(kind).items() if name not in ("__dict__", "__weakref__")}
    module.__class__ = type(kind.__name__, kind.__bases__, entries)


@contextmanager
def restored(model: nn.Module) -> Iterator[None]:
    """Restore all parameters and buffers bit for bit at the end, also after an exception."""
    saved = [(tensor, tensor.detach().clone()) for tensor in chain(model.parameters(), model.buffers())]
    try:
        yield
    finally:
        with torch.no_grad():
            for tensor, values in saved:
                tensor.copy_(values)


@torch.no_grad()
def quantize_(model: nn.Module, bits: int, granularity: Granularity) -> None:
    """Quantize the weights of :func:`lowland.lab.quantize.targets` in place.

    Raises:
        ArgumentError: A weight is not float32 or not finite.
    """
    for target in targets(model):
        target.tensor.copy_(quantized(target.tensor, bits, granularity, target.axis))


@torch.no_grad()
def add_noise_(model: nn.Module, level: float, norm: Norm, seed: int, draw: int) -> None:
    """Add Gaussian noise to the weights of :func:`lowland.lab.quantize.targets` in place.

    A weight becomes ``w + level · rms · z`` with standard normal ``z`` and the root mean square ``rms`` of its filter
    or tensor. So the expected squared norm of the noise is ``level²`` times that of the filter or tensor.

    Args:
        model: The model.
        level: The level of the noise.
        norm: Whether the root mean square is that of a filter or of a tensor.
        seed: The seed of the noise.
        draw: The number of the draw. All levels of one draw have the same ``z``, and all devices, too.
    """
    numbers = stream(seed, "noise", draw)
    for target in targets(model):
        weight = target.tensor
        z = torch.randn(weight.shape, generator=numbers).to(weight)
        weight.add_(level * _rms(target, norm) * z)


def _rms(target: Target, norm: Norm) -> torch.Tensor:
    """The root mean square of the weights, for each filter or of the tensor, in a shape that broadcasts."""
    squares = target.tensor.square()
    if norm == "tensor":
        return squares.mean().sqrt()
    others = [dim for dim in range(squares.ndim) if dim != target.axis]
    return squares.mean(others, keepdim=True).sqrt()
