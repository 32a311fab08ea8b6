"""Models by name from torchvision and timm, if they are installed."""

from __future__ import annotations

import importlib
from typing import Any

import torch
from torch import Tensor, nn

from lowland.core.errors import ArgumentError, UnknownNameError

Shape = tuple[int, int, int]
PACKAGES = ("torchvision", "timm")


class Colored(nn.Module):
    """Repeats the channel of grey images for a network with three input channels."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Any:
        """The output of the inner network for images (B, 1, H, W)."""
        return self.inner(x.expand(-1, 3, -1, -1))


def package_of(name: str) -> str | None:
    """The package of a model: the prefix in ``torchvision:resnet18``, or the first package that has the model."""
    prefix, _, _ = name.rpartition(":")
    if prefix:
        return prefix if prefix in PACKAGES else None
    return next((p for p in PACKAGES if name in _names(p, required=False)), None)


def make(package: str, name: str, shape: Shape, classes: int) -> nn.Module:
    """Make the model ``name`` of ``package`` with random weights, for images of ``shape``.

    Args:
        package: ``torchvision`` or ``timm``.
        name: The name of the model in the package.
        shape: The shape of one image: (channels, height, width).
        classes: The number of logits.

    Raises:
        ArgumentError: The package cannot be imported, or the model does not work on such images.
        UnknownNameError: The package has no model of this name.
    """
    known = _names(package, required=True)
    if name not in known:
        raise UnknownNameError(f"{package} model", name, known)
    try:
        model = _torchvision(name, shape, classes) if package == "torchvision" else _timm(name, shape, classes)
        _try(model, shape, classes)
    except Exception as error:  # a model can raise any exception for a shape that it does not accept
        raise ArgumentError(
            f"model {package}:{name} cannot be used for images of shape {shape} and {classes} classes "
            f"({type(error).__name__}: {error}); take another model, such as resnet20"
        ) from error
    return model


def _names(package: str, *, required: bool) -> list[str]:
    try:
        module = importlib.import_module("torchvision.models" if package == "torchvision" else "timm")
    # RuntimeError: torchvision built for another version of torch cannot register its operators; timm imports it.
    except (ImportError, RuntimeError) as error:
        if not required:
            return []
        raise ArgumentError(
            f"model names of {package} need {package} to be installed and to import, but: {error}; "
            f"run: pip install {package} (a build that fits torch {torch.__version__})"
        ) from error
    return list(module.list_models())


def _torchvision(name: str, shape: Shape, classes: int) -> nn.Module:
    models = importlib.import_module("torchvision.models")
    extra = {"image_size": shape[1]} if name.startswith("vit_") else {}
    model: nn.Module = models.get_model(name, weights=None, num_classes=classes, **extra)
    return Colored(model) if shape[0] == 1 else model


def _timm(name: str, shape: Shape, classes: int) -> nn.Module:
    timm = importlib.import_module("timm")
    wanted = {"pretrained": False, "num_classes": classes, "in_chans": shape[0]}
    try:
        model: nn.Module = timm.create_model(name, img_size=shape[1], **wanted)
    except TypeError:  # convolutional models have no argument img_size
        model = timm.create_model(name, **wanted)
    return model


def _try(model: nn.Module, shape: Shape, classes: int) -> None:
    """Run one forward pass, so that an unsuitable model fails here and not in the first step of a run."""
    was_training = model.training
    try:
        with torch.no_grad():
            logits = model.eval()(torch.zeros(2, *shape))
    finally:
        model.train(was_training)
    if not isinstance(logits, Tensor) or logits.shape != (2, classes):
        output = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
        raise ValueError(f"its output must be logits of shape (2, {classes}), but is {output}")
