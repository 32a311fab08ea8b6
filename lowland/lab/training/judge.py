"""Evaluates the model of a run after every epoch, and decides on the best epoch and on early stopping."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from lowland.core import precision
from lowland.lab.config import RunConfig
from lowland.lab.data.loader import Loader
from lowland.lab.training.evaluate import better, evaluate, fingerprint, headline
from lowland.lab.training.trainer import Trainer
from lowland.sharpness import m_sharpness

JUDGED = 2048  # training metrics and m-sharpness are measured on the first 2048 training examples
M = 128  # the examples in a micro-batch of m-sharpness
RHO = 0.05  # the radius of m-sharpness, the same for every method


class Judge:
    """Evaluates a run's model on the parts of the data, and stores the best epoch.

    Args:
        config: The run.
        loader: The loader of the run.

    Attributes:
        score: Loss and metrics of each part from the last evaluation.
        best: The best epoch on the validation part, with the loss and metrics of each part after it; empty without a
            validation part.
    """

    def __init__(self, config: RunConfig, loader: Loader) -> None:
        self._config, self._loader = config, loader
        self._task = config.task.seeded(config.seed)
        self.score: dict[str, dict[str, float]] = {}
        self.best: dict[str, Any] = {}

    def judge(self, trainer: Trainer, epoch: int) -> None:
        """Evaluate all parts after an epoch, and store the epoch if it is the best on the validation part."""
        parts = {
            name: self._loader.evaluation(part=name) for name in ("test", "validation") if name in self._loader.parts
        }
        precision = self._config.recipe.precision
        with trainer.evaluated() as model:
            self.score = {
                name: evaluate(self._task, model, batches, precision=precision, device=trainer.device)
                for name, batches in (parts | {"train": self._train()}).items()
            }
        validation = self.score.get("validation")
        if validation is not None and better(self._task, validation, self.best.get("validation")):
            self.best = {"epoch": epoch, **{name: self.score[name] for name in parts}}

    def should_stop(self, epoch: int) -> bool:
        """Whether the run's patience is used up: the best epoch on the validation part is too long ago."""
        patience = self._config.patience
        return patience is not None and epoch - self.best.get("epoch", 0) >= patience

    def headline(self) -> str | None:
        """The first metric on the test part as text; None before the first evaluation."""
        return f"test {headline(self._task.metrics, self.score['test'])}" if self.score else None

    def final(self, trainer: Trainer) -> dict[str, Any]:
        """The m-sharpness of the final weights, and their hash.

        The m-sharpness is None for weights in bf16 or fp16, which round its displacements.
        """
        with trainer.evaluated() as model:
            rise = None
            if not precision.is_low([p for p in model.parameters() if p.requires_grad]):
                rise = float(m_sharpness(model, self._task.loss, self._train(), rho=RHO, m=M, cut=self._task.cut))
            sha = fingerprint(model)
        return {"m_sharpness": rise, "weights_sha256": sha}

    def _train(self) -> Iterator[Any]:
        return self._loader.evaluation(M, part="train", most=JUDGED)
