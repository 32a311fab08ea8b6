"""Models by name: ``build("resnet20", shape=(3, 32, 32), classes=10, seed=0)``.

A new model for images is a function from image shape and number of classes to a module, and a line in ``MODELS``.
Transformers for texts are in ``encoder`` and ``gpt``, whose tasks make them.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import nn

from lowland.core import checks
from lowland.core.errors import ArgumentError, UnknownNameError
from lowland.lab.data.streams import derived
from lowland.lab.models import hub
from lowland.lab.models.mlp import convnet, mlp
from lowland.lab.models.resnet import resnet20, resnet56
from lowland.lab.models.vit import vit_tiny
from lowland.lab.models.wide import wrn_16_4

__all__ = ["MODELS", "build", "make", "seeded"]

WIDTHS = (4, 8, 32, 64)  # of ResNet-20's first stage, besides 16; a name such as resnet20-w8

MODELS: dict[str, Callable[[tuple[int, int, int], int], nn.Module]] = {
    "mlp": mlp,
    "convnet": convnet,
    "resnet20": resnet20,
    "resnet56": resnet56,
    "wrn-16-4": wrn_16_4,
    "vit-tiny": vit_tiny,
    **{f"resnet20-w{width}": partial(resnet20, width=width) for width in WIDTHS},
}


def make(name: str, shape: tuple[int, int, int], classes: int) -> nn.Module:
    """Make the model of this name, with weights from torch's global random numbers.

    Args:
        name: A key of ``MODELS``, or the name of a model of an installed torchvision or timm:
            ``torchvision:resnet18``, ``timm:vit_tiny_patch16_224``, or only the model's name.
        shape: The shape of one image: (channels, height, width).
        classes: The number of logits, >= 2.

    Raises:
        UnknownNameError: There is no model of this name.
        ArgumentError: The model does not work on images of this shape, or its package is not installed.
    """
    checks.integer("classes", classes, 2, "a task has at least two")
    package = None if name in MODELS else hub.package_of(name)
    if name not in MODELS and package is None:
        known = [*MODELS, *(f"{p}:NAME (where {p} is installed)" for p in hub.PACKAGES)]
        raise UnknownNameError("model", name, known)
    if package is not None:
        return hub.make(package, name.rpartition(":")[2], shape, classes)
    if min(shape[1:]) < 8:
        raise ArgumentError(f"shape must be at least 8 × 8 pixels, but is {shape}; enlarge the images")
    return MODELS[name](shape, classes)


def build(name: str, *, shape: tuple[int, int, int], classes: int, seed: int) -> nn.Module:
    """Make the model of this name, with weights that depend only on ``seed``; see :func:`make` and :func:`seeded`."""
    return seeded(lambda: make(name, shape, classes), seed)


def seeded(maker: Callable[[], nn.Module], seed: int) -> nn.Module:
    """Make a model whose weights depend only on ``seed``; the global random state is unchanged.

    Args:
        maker: A function that makes a model on the CPU with weights from torch's global random numbers.
        seed: The seed of the weights.
    """
    # devices=[], because only the CPU draws numbers. torch.manual_seed would also seed the GPUs.
    with torch.random.fork_rng(devices=[]), torch.device("cpu"):
        torch.default_generator.manual_seed(derived(seed, "weights"))
        return maker()
