"""Transfer: a network is trained on some classes of a data set, then fine-tuned on the others."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from torch import Tensor, nn

from lowland.core import checks
from lowland.core.errors import ArgumentError
from lowland.core.outside import hashed
from lowland.lab import names
from lowland.lab.data.contents import verified
from lowland.lab.data.images import ImageSet
from lowland.lab.models.start import run_of, start_from, weights_file
from lowland.lab.recipe import Recipe
from lowland.lab.tasks.classification import Classification

# The factor of the learning rate in fine-tuning. After 5 epochs of pre-training on 10,000 images of CIFAR-10's first
# classes with the convolutional network, 10 epochs of fine-tuning on 1,000 images of the others, in batches of 50, gave
# 70.9 % with a factor of 0.1 and 77.3 % with 0.5. Training from new weights gave 72.0 % (one seed each).
GENTLE = 0.5


def _sources() -> dict[str, type[Classification]]:
    """The tasks with images of their own, by name; a task over the images of another one has no classes of its own."""
    kinds = {name: kind for name, kind in names.tasks().items() if issubclass(kind, Classification)}
    return {name: kind for name, kind in kinds.items() if isinstance(getattr(kind, "classes", None), int)}


@dataclass(frozen=True, kw_only=True)
class Transfer(Classification):
    """Fine-tuning on some classes of a network that was trained on the other classes of the same data set.

    First train on the first classes, then start the fine-tuning on the others from that run::

        lowland train --task transfer:side=pretrain --method sam --out runs
        lowland compare --task transfer:start=runs/NAME --methods plain sam

    All weights but those of the last linear layer are transferred. The model must be the same, also one from
    torchvision or timm, whose weights may come from a safetensors file. The run of ``side=scratch`` shows what the
    transfer is worth: it trains on the same classes as the fine-tuning, from new weights.

    Args:
        source: The task whose images are used, such as cifar10, fashion-mnist or digits.
        first: Number of classes of the pre-training, the first ones, >= 2; None is half of them. At least 2 must be
            left.
        side: finetune and scratch train on the other classes, pretrain on the first ones.
        start: The run folder of a pre-training, or a safetensors file, from which the fine-tuning starts.
        weights: Hash of the weights in start, which belongs to the identity of a run; None computes it.
    """

    source: str = "cifar10"
    first: int | None = None
    side: Literal["finetune", "pretrain", "scratch"] = "finetune"
    start: str | None = None
    weights: str | None = None

    def __post_init__(self) -> None:
        checks.one_of("source", self.source, _sources())
        checks.one_of("side", self.side, ("finetune", "pretrain", "scratch"))
        if self.first is not None:
            checks.integer("first", self.first, 2, "None is half of the classes")
            total = self._task.classes
            if self.first > total - 2:
                raise ArgumentError(
                    f"first must be at most {total - 2}, so that 2 of the {total} classes of {self.source} are left, "
                    f"but is {self.first}; None is half of them"
                )
        self._check_start()
        super().__post_init__()

    def _check_start(self) -> None:
        if self.start is None:
            if self.weights is not None:
                raise ArgumentError(f"weights must be None without start, but is {self.weights!r}; give start, too")
            return
        if not isinstance(self.start, str) or self.side != "finetune":
            raise ArgumentError(
                f"start must be the path of a run for side=finetune, but is {self.start!r} for side={self.side}; leave "
                "out one of the two"
            )
        record = run_of(self.start)
        made = None if record is None else names.make(record.task)
        expected = (self.source, self._begin)
        if made is not None and not (
            isinstance(made, Transfer) and made.side == "pretrain" and (made.source, made._begin) == expected
        ):
            raise ArgumentError(
                f"start must be a run of {names.spell(self._pretraining)}, which has not seen the classes of the "
                f"fine-tuning, but {self.start} is one of {names.spell(made)}; make one with: {self._command}"
            )
        if self.weights is None:
            digest = hashed(verified("start", weights_file(self.start, self._command), None))
            object.__setattr__(self, "weights", digest)

    @property
    def _task(self) -> Classification:
        return _sources()[self.source]()

    @property
    def _begin(self) -> int:
        """The first class of the fine-tuning."""
        return self._task.classes // 2 if self.first is None else self.first

    @property
    def _pretraining(self) -> Transfer:
        return Transfer(source=self.source, first=self.first, side="pretrain")

    @property
    def _command(self) -> str:
        return f"lowland train --task {names.spell(self._pretraining)}"

    @property
    def shape(self) -> tuple[int, int, int]:  # type: ignore[override]
        """The shape of an image: (channels, height, width)."""
        return self._task.shape

    @property
    def classes(self) -> int:  # type: ignore[override]
        """The number of classes of this side."""
        return self._begin if self.side == "pretrain" else self._task.classes - self._begin

    @property
    def models(self) -> tuple[str, ...]:  # type: ignore[override]
        """The models of the source."""
        return self._task.models

    def images(self, root: Path | None) -> ImageSet:
        """The images of this side's classes, which are numbered from 0."""
        images = self._task.images(root)
        low = 0 if self.side == "pretrain" else self._begin
        kept = range(low, low + self.classes)
        train, test = (_among(t, kept) for t in (images.clean_targets, images.test_targets))
        targets = images.clean_targets[train] - low
        pairs = images.confusions
        pairs = pairs and {a - low: b - low for a, b in pairs.items() if a in kept and b in kept}
        if self.noise and self.noise_kind == "asymmetric" and pairs == {}:
            raise ArgumentError(
                f"noise_kind must be symmetric here, because no two classes of this side of {self.source} look alike, "
                "but is asymmetric; take symmetric"
            )
        return replace(
            images,
            train_inputs=images.train_inputs[train],
            train_targets=targets,
            clean_targets=targets,
            test_inputs=images.test_inputs[test],
            test_targets=images.test_targets[test] - low,
            classes=self.classes,
            confusions=pairs,
        )

    def initialize(self, model: nn.Module) -> nn.Module:
        """Load the weights of ``start`` into a new model, except those of its head.

        Raises:
            ArgumentError: ``start`` is missing, or its weights are those of another model.
            DataError: The weights have changed since the task was named.
        """
        if self.side != "finetune":
            return model
        if self.start is None:
            raise ArgumentError(
                "start must name the run from which the fine-tuning starts, but is None; make one with "
                f"`{self._command}`, and write transfer:start=FOLDER; side=scratch trains without one"
            )
        place = weights_file(self.start, self._command)
        start_from(model, verified("start", place, self.weights), self.classes, place)
        return model

    def recipe(self, model: str) -> Recipe:
        """The recipe of the source; fine-tuning has half of its learning rate."""
        recipe = self._task.recipe(model)
        return recipe.replace(lr=GENTLE * recipe.lr) if self.side == "finetune" else recipe


def _among(targets: Tensor, kept: range) -> Tensor:
    """Which labels are in a range, shape ``(N,)``, bool."""
    return (targets >= kept.start) & (targets < kept.stop)
