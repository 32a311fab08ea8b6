"""What judges a run: its model after every epoch, the best epoch, and when to stop early."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from lowland.lab.config import RunConfig
from lowland.lab.data.loader import Loader
from lowland.lab.training.evaluate import better, evaluate, fingerprint, headline
from lowland.lab.training.trainer import Trainer
from lowland.sharpness import m_sharpness

JUDGED = 2048  # training examples that train accuracy and m-sharpness are measured on, the first as stored
M = 128  # examples in a micro-batch of m-sharpness
RHO = 0.05  # its radius, the same for every method


class Judge:
    """Measures a run's model on the parts of the data, and remembers the best epoch.

    Args:
        config: The run.
        loader: Its data.

    Attributes:
        score: Loss and metrics of the parts that were judged last.
        best: The best epoch on validation, with what the parts were judged then; empty without a validation part.
    """

    def __init__(self, config: RunConfig, loader: Loader) -> None:
        self._config, self._loader = config, loader
        self._task = config.task.seeded(config.seed)
        self.score: dict[str, dict[str, float]] = {}
        self.best: dict[str, Any] = {}

    def judge(self, trainer: Trainer, epoch: int) -> None:
        """Measure loss and metrics of all parts, and whether this epoch is the best on validation."""
        parts = {
            name: self._loader.evaluation(part=name) for name in ("test", "validation") if name in self._loader.parts
        }
        precision = self._config.recipe.precision
        with trainer.evaluated() as model:
            self.score = {
                name: evaluate(self._task, model, batches, precision=precision, device=trainer.device)
                for name, batches in (parts | {"train": self._train()}).items()
            }
        seen = self.score.get("validation")
        if seen is not None and better(self._task, seen, self.best.get("validation")):
            self.best = {"epoch": epoch, **{name: self.score[name] for name in parts}}

    def patient_no_more(self, epoch: int) -> bool:
        """Whether the best epoch on validation is too long ago."""
        patience = self._config.patience
        return patience is not None and epoch - self.best.get("epoch", 0) >= patience

    def headline(self) -> str | None:
        """The first metric on the test part as people read it; None before anything was judged."""
        return f"test {headline(self._task.metrics, self.score['test'])}" if self.score else None

    def verdict(self, trainer: Trainer) -> dict[str, Any]:
        """The m-sharpness of the final weights, and their hash."""
        with trainer.evaluated() as model:
            rise = m_sharpness(model, self._task.loss, self._train(), rho=RHO, m=M, cut=self._task.cut)
            sha = fingerprint(model)
        return {"m_sharpness": float(rise), "weights_sha256": sha}

    def _train(self) -> Iterator[Any]:
        return self._loader.evaluation(M, part="train", most=JUDGED)
