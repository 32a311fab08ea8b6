"""The joints of stick figures, found by heat maps; the figures are drawn, so the task needs no download."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from lowland.core import checks
from lowland.core.errors import ArgumentError, UnknownNameError
from lowland.lab.data.figures import JOINTS, Figures, draw
from lowland.lab.metric import Metric
from lowland.lab.models.keypoint import HeatMaps
from lowland.lab.recipe import Recipe
from lowland.lab.task import Task
from lowland.lab.tasks.defaults import TUNED

NEAR = 0.1  # a joint counts as found within this fraction of the figure's size
TEST = 1000


def _distances(places: Tensor, batch: Any) -> Tensor:
    """The distance of each joint from its true place, (B, 9), in pixels."""
    distances: Tensor = (places - batch[1]).square().sum(-1).sqrt()
    return distances


def _found(places: Tensor, batch: Any) -> Tensor:
    found = _distances(places, batch) <= NEAR * batch[2].unsqueeze(1)
    return torch.stack([found.sum(), torch.full_like(found, True).sum()])


def _far(places: Tensor, batch: Any) -> Tensor:
    distances = _distances(places, batch).double()
    return torch.stack([distances.sum(), torch.ones_like(distances).sum()])


PCK = Metric(name="pck", update=_found, unit="%", scale=100)
DISTANCE = Metric(name="distance", update=_far, unit="px", higher=False)


@dataclass(frozen=True, kw_only=True)
class Keypoints(Task):
    """The joints of stick figures on noisy images: 4,000 for training and 1,000 for the test.

    A figure has 9 joints, and rectangles hide parts of it. The metrics are the percentage of joints within a tenth of
    the figure's size (pck), and the mean distance of the joints from their true places in pixels. The images are the
    same in every run.

    Args:
        examples: Number of training images, >= 1.
        side: Height and width of the images in pixels, a multiple of 8, >= 24.
        noise: Standard deviation of the noise of each pixel, >= 0, where 1 is the brightest limb.
        hidden: Number of rectangles that hide parts of each image, >= 0.
        spread: Standard deviation of the Gaussian around each joint that the heat maps are trained to give, > 0, in
            pixels.
    """

    examples: int = 4000
    side: int = 48
    noise: float = 0.15
    hidden: int = 2
    spread: float = 1.0

    metrics: ClassVar[tuple[Metric, ...]] = (PCK, DISTANCE)
    models: ClassVar[tuple[str, ...]] = ("heatmaps", "heatmaps-small")

    def __post_init__(self) -> None:
        checks.integer("examples", self.examples, 1, "the default is 4000")
        checks.integer("side", self.side, 24, "the default is 48")
        if self.side % 8:
            raise ArgumentError(
                f"side must be a multiple of 8, because the network halves it three times, but is {self.side}; take 48"
            )
        checks.at_least("noise", self.noise, 0, "0 adds no noise")
        checks.integer("hidden", self.hidden, 0, "0 hides nothing")
        checks.at_least("spread", self.spread, 0, "the default is 1.0")
        if self.spread == 0:
            raise ArgumentError("spread must be > 0, but is 0; a small number, such as 0.5, is nearly a single pixel")

    def datasets(self, root: Path | None) -> Mapping[str, Any]:
        """The figures of both parts, which are drawn with separate random numbers; ``root`` is ignored."""
        return {"train": self._part("train", self.examples), "test": self._part("test", TEST)}

    def _part(self, name: str, count: int) -> Figures:
        return draw(name, count, self.side, float(self.noise), self.hidden)

    def model(self, name: str) -> nn.Module:
        """An encoder-decoder with 16 channels at full size; ``heatmaps-small`` has 8.

        Raises:
            UnknownNameError: There is no model of this name.
        """
        if name not in self.models:
            raise UnknownNameError("model", name, self.models)
        return HeatMaps(len(JOINTS), width=16 if name == "heatmaps" else 8)

    def loss(self, model: nn.Module, batch: Any) -> Tensor:
        """The cross-entropy of each example, shape ``(B,)``: of the scores over all pixels, mean over the joints.

        The target of a joint is a Gaussian around its place, normalized over the pixels of the image.
        """
        return self._losses(model(batch[0]).float(), batch)

    def _losses(self, scores: Tensor, batch: Any) -> Tensor:
        logs = scores.flatten(2).log_softmax(-1)  # (B, 9, S²)
        return -(self._targets(batch[1], scores.shape) * logs).sum(-1).mean(1)

    def _targets(self, joints: Tensor, shape: torch.Size) -> Tensor:
        """The probabilities of the pixels, (B, 9, S²)."""
        rows, columns = (torch.arange(n, device=joints.device, dtype=joints.dtype) for n in shape[2:])
        across = (columns - joints[..., :1]).square()  # (B, 9, S)
        down = (rows - joints[..., 1:]).square()
        return (-(down.unsqueeze(-1) + across.unsqueeze(-2)) / (2 * self.spread**2)).flatten(2).softmax(-1)

    def predict(self, model: nn.Module, batch: Any) -> Tensor:
        """The places of the highest scores, (B, 9, 2), as (column, row) in pixels."""
        return _highest(model(batch[0]))

    def judged(self, model: nn.Module, batch: Any) -> tuple[Tensor, Tensor]:
        """Losses (B,) and places (B, 9, 2) from one forward pass."""
        scores = model(batch[0]).float()
        return self._losses(scores, batch), _highest(scores)

    def recipe(self, model: str) -> Recipe:
        """20 epochs of AdamW at learning rate 0.003."""
        # In a trial of 6 epochs plain found 96.0 % of the joints of the test part (one seed).
        return Recipe(
            optimizer="adamw", lr=3e-3, weight_decay=0.01, epochs=20, batch_size=64, precision="auto",
            channels_last=True,
        )  # fmt: skip

    def defaults(self, method: str, model: str) -> Mapping[str, Any]:
        """Fields of methods for which the class's defaults do not suit small networks; see :data:`TUNED`."""
        return TUNED.get(method, {})


def _highest(scores: Tensor) -> Tensor:
    """The places (column, row) of the highest scores, (B, 9, 2)."""
    best = scores.flatten(2).argmax(-1)  # (B, 9)
    width = scores.shape[-1]
    return torch.stack([best % width, best.div(width, rounding_mode="floor")], -1).to(torch.float32)
