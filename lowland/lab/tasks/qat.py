"""Quantization-aware training of the models of another task: weights are quantized in every forward pass."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from torch import nn

from lowland.core import checks
from lowland.core.errors import ArgumentError
from lowland.lab.data.images import ImageSet
from lowland.lab.quantize import GRANULARITIES, Displace, FakeQuantize, Granularity, quantize_model
from lowland.lab.recipe import Recipe
from lowland.lab.tasks.cifar import Cifar10
from lowland.lab.tasks.classification import Classification
from lowland.lab.tasks.digits import Digits
from lowland.lab.tasks.fashion import FashionMnist

_TASKS: dict[str, Classification] = {"digits": Digits(), "fashion-mnist": FashionMnist(), "cifar10": Cifar10()}


@dataclass(frozen=True, kw_only=True)
class Qat(Classification):
    """Quantization-aware training of a model of digits, fashion-mnist or cifar10.

    The weights of linear and convolutional layers are quantized in every forward pass, with the straight-through
    gradient; see :mod:`lowland.lab.quantize`. The trained and saved weights are the latent ones, the evaluated weights
    are the quantized ones. Models, recipe and metrics are those of the other task.

    Args:
        data: The task whose images and models are used: digits, fashion-mnist or cifar10.
        bits: Bits of a weight: 4 or 8.
        granularity: channel has one scale for each output channel, tensor one for each weight tensor.
        displace: What the perturbation of a method is added to: the latent weights before they are quantized, or the
            quantized weights. The latter needs the weights themselves, so it works on one device and with DDP, but not
            with --shard.
    """

    data: Literal["digits", "fashion-mnist", "cifar10"] = "digits"
    bits: int = 8
    granularity: Granularity = "channel"
    displace: Displace = "latent"

    def __post_init__(self) -> None:
        super().__post_init__()
        checks.one_of("data", self.data, tuple(_TASKS))
        if type(self.bits) is not int or self.bits not in (4, 8):
            raise ArgumentError(f"bits must be 4 or 8, but is {self.bits!r}; `lowland survive` measures other bits")
        checks.one_of("granularity", self.granularity, GRANULARITIES)
        checks.one_of("displace", self.displace, ("latent", "quantized"))

    @property
    def _task(self) -> Classification:
        return _TASKS[self.data]

    @property
    def shape(self) -> tuple[int, int, int]:  # type: ignore[override]
        """The shape of an image."""
        return self._task.shape

    @property
    def classes(self) -> int:  # type: ignore[override]
        """The number of classes."""
        return self._task.classes

    @property
    def models(self) -> tuple[str, ...]:  # type: ignore[override]
        """The models of the other task."""
        return self._task.models

    def images(self, root: Path | None) -> ImageSet:
        """The images of the other task."""
        return self._task.images(root)

    def model(self, name: str) -> nn.Module:
        """A model of the other task whose weights are quantized in every forward pass."""
        return quantize_model(super().model(name), self.bits, self.granularity, self.displace)

    def recipe(self, model: str) -> Recipe:
        """The recipe of the other task."""
        return self._task.recipe(model)

    def defaults(self, method: str, model: str) -> Mapping[str, Any]:
        """The defaults of the other task."""
        return self._task.defaults(method, model)

    def param_groups(self, model: nn.Module, recipe: Recipe) -> list[dict[str, Any]]:
        """One group with all trainable parameters.

        Raises:
            ArgumentError: The model does not quantize its weights, because it is not one of the task.
        """
        if not any(isinstance(module, FakeQuantize) for module in model.modules()):
            raise ArgumentError(
                "model must be one that the task qat makes, but quantizes no weight; take one of "
                f"{', '.join(self.models)}, or call lowland.lab.quantize.quantize_model in your own model"
            )
        return super().param_groups(model, recipe)
