"""Regression or classification of the rows of the user's own table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from lowland.core import checks
from lowland.core.errors import ArgumentError, DataError, UnknownNameError
from lowland.core.outside import hashed
from lowland.lab.data.contents import verified
from lowland.lab.data.streams import stream
from lowland.lab.data.table import Column, Rows, columns_of, divided, encoded, standardized
from lowland.lab.metric import Metric
from lowland.lab.recipe import Recipe
from lowland.lab.task import Task, refuse_smoothing
from lowland.lab.tasks.classification import ACCURACY, losses, scores
from lowland.lab.tasks.defaults import TUNED
from lowland.lab.tasks.regression import R2, RMSE, numbers, perceptron

SEPARATORS = {"comma": ",", "semicolon": ";", "tab": "\t"}


@dataclass(frozen=True, kw_only=True)
class Tabular(Task):
    """A table of your own, for example ``tabular:file=houses.csv,target=price,kind=regression``.

    The file is a CSV file with a line of names. Columns of numbers are standardized by the training rows. Other columns
    become one feature for each text. A missing number (empty, NA, nan, null, none or ?) becomes the mean of the
    training rows, with a feature that says so; a missing text is a text of its own. A missing target is refused.

    Args:
        file: The path of the file, in UTF-8.
        target: The column to predict.
        kind: Whether the target is a number (regression) or a class (classification).
        test: Fraction of the rows in the test part, in (0, 1); of each class for classification.
        split_seed: Seed of the choice of the test rows, >= 0, which is the same in every run.
        ignore: Columns that are left out, such as ('id', 'name').
        categorical: Columns of numbers that mean categories, such as ('postcode', 'month').
        separator: The character between two values: comma, semicolon or tab.
        width: Hidden units of each of the two layers of the model, >= 1.
        contents: Hash of the file, which belongs to the identity of a run; None computes it.
    """

    file: str | None = None
    target: str | None = None
    kind: Literal["regression", "classification"] | None = None
    test: float = 0.2
    split_seed: int = 0
    ignore: tuple[str, ...] = ()
    categorical: tuple[str, ...] = ()
    separator: Literal["comma", "semicolon", "tab"] = "comma"
    width: int = 64
    contents: str | None = None

    def __post_init__(self) -> None:
        for name, value in (("file", self.file), ("target", self.target)):
            if value is None or value == "":
                raise ArgumentError(
                    f"{name} must be given, but is {value!r}; write, for example, "
                    "tabular:file=houses.csv,target=price,kind=regression"
                )
            object.__setattr__(self, name, str(value))  # a name may look like a number
        checks.one_of("kind", self.kind, ("regression", "classification"))
        checks.one_of("separator", self.separator, SEPARATORS)
        checks.integer("split_seed", self.split_seed, 0, "the default is 0")
        checks.integer("width", self.width, 1, "the default is 64")
        if isinstance(self.test, bool) or not isinstance(self.test, int | float) or not 0 < self.test < 1:
            raise ArgumentError(
                f"test must be in (0, 1), but is {self.test!r}; it is a fraction of the rows, such as 0.2"
            )
        for name in ("ignore", "categorical"):
            value = getattr(self, name)
            listed = value if isinstance(value, tuple | list) else (value,)
            object.__setattr__(self, name, tuple(str(each) for each in listed))
        if self.contents is None:
            object.__setattr__(self, "contents", hashed(verified("file", self._path, None)))

    @property
    def _path(self) -> Path:
        return Path(str(self.file)).expanduser()

    @property
    def _table(self) -> Table:
        return _read(self)

    @property
    def metrics(self) -> tuple[Metric, ...]:  # type: ignore[override]
        """Accuracy for classification; for regression R² and the root of the mean squared error."""
        return (ACCURACY,) if self.kind == "classification" else (R2, RMSE)

    @property
    def models(self) -> tuple[str, ...]:  # type: ignore[override]
        """A perceptron with two hidden layers."""
        return ("mlp",)

    @property
    def features(self) -> int:
        """The number of features, into which the columns are converted."""
        return int(self._table.train.inputs.shape[1])

    @property
    def outputs(self) -> int:
        """The number of classes, in the order of their sorted names; 1 for regression."""
        return len(self._table.classes) or 1

    def datasets(self, root: Path | None) -> Mapping[str, Any]:
        """The training and the test rows; ``root`` is ignored.

        Raises:
            ArgumentError: The file cannot be read, or has no such column.
            DataError: The file has changed since the task was named, or its contents cannot be used.
        """
        return {"train": self._table.train, "test": self._table.test}

    def model(self, name: str) -> nn.Module:
        """A perceptron; see :func:`lowland.lab.tasks.regression.perceptron`."""
        return perceptron(name, self.features, self.outputs, self.width)

    def loss(self, model: nn.Module, batch: Any) -> Tensor:
        """The squared error of each standardized target, or the cross-entropy of each class, shape ``(B,)``."""
        return self._losses(self.predict(model, batch), batch)

    def training_loss(self, model: nn.Module, batch: Any, recipe: Recipe) -> Tensor:
        """The loss of each example; for classification with the recipe's label smoothing, shape ``(B,)``.

        Raises:
            ArgumentError: The recipe has a label smoothing, and the target is a number.
        """
        if self.kind == "regression":
            refuse_smoothing(self, recipe)
        return self._losses(self.predict(model, batch), batch, recipe.label_smoothing)

    def _losses(self, values: Tensor, batch: Any, smoothing: float = 0.0) -> Tensor:
        if self.kind == "classification":
            return losses(values, batch[1], self.outputs, smoothing)
        errors: Tensor = (values - batch[1]).square()
        return errors

    def predict(self, model: nn.Module, batch: Any) -> Tensor:
        """Logits (B, classes), or standardized targets (B,)."""
        if self.kind == "regression":
            return numbers(model, batch)
        return scores(model(batch[0]), self.outputs)

    def judged(self, model: nn.Module, batch: Any) -> tuple[Tensor, Tensor]:
        """Losses (B,) and predictions from one forward pass."""
        values = self.predict(model, batch)
        return self._losses(values, batch), values

    def recipe(self, model: str) -> Recipe:
        """20 epochs of AdamW at learning rate 0.001; batches of 32, or a quarter of a small table."""
        # On scikit-learn's tables diabetes, wine, breast cancer and digits this rate was as good as 0.003 and as SGD at
        # 0.01, within their intervals over 3 seeds, and better than SGD at 0.003.
        size = min(32, max(1, len(self._table.train) // 4))
        return Recipe(optimizer="adamw", lr=1e-3, weight_decay=0.01, epochs=20, batch_size=size)

    def defaults(self, method: str, model: str) -> Mapping[str, Any]:
        """Fields of methods for which the class's defaults do not suit small networks; see :data:`TUNED`."""
        return TUNED.get(method, {})


@dataclass(frozen=True, eq=False)
class Table:
    """The rows of both parts, and the names of the classes; there are none for regression."""

    train: Rows
    test: Rows
    classes: tuple[str, ...]


@lru_cache(maxsize=8)
def _read(task: Tabular) -> Table:
    columns = columns_of(verified("file", task._path, task.contents), SEPARATORS[task.separator], str(task.file))
    for name in (str(task.target), *task.ignore, *task.categorical):
        if name not in columns:
            raise UnknownNameError("column", name, columns)
    target = columns.pop(str(task.target))
    target.refuse_missing()
    generator = stream(task.split_seed, "table")
    labels, classes = _classes(target, task.kind)
    test = divided(len(target.values), task.test, generator, labels)
    train = (~test).nonzero().squeeze(1)
    if labels is not None and test.sum() < len(test):
        _refuse_few(task, labels, test, classes)
    if not bool(test.any()) or len(train) < 2:
        raise DataError(
            f"{task.file} must have a test row and 2 training rows, but {len(target.values)} rows are too few for "
            f"test={task.test}; add rows, or change test"
        )
    inputs = encoded([c for name, c in columns.items() if name not in task.ignore], task.categorical, train)
    if labels is not None:
        return Table(Rows(inputs[train], labels[train]), Rows(inputs[test], labels[test]), classes)
    values = _numeric(target)
    seen, unseen, unit = standardized(values[train], values[test], f"the target {target.name}")
    return Table(Rows(inputs[train], seen, unit), Rows(inputs[test], unseen, unit), ())


def _refuse_few(task: Tabular, labels: Tensor, test: Tensor, classes: Sequence[str]) -> None:
    """Refuse a division that small classes have spoiled, because a part of each is rounded.

    Raises:
        DataError: A class has no training row, or the test part has less than half of the rows that it should have.
    """
    seen = torch.bincount(labels[~test], minlength=len(classes))
    if not bool(seen.all()):
        missing = int((seen == 0).nonzero()[0])
        raise DataError(
            f"every class of {task.target} must have a training row, but all {int((labels == missing).sum())} "
            f"rows of {classes[missing]!r} are in the test part; add rows, drop the class, or take a smaller test than "
            f"{task.test}"
        )
    if int(test.sum()) < task.test * len(test) / 2:
        raise DataError(
            f"the test part must have about {task.test} of the {len(test)} rows, but has {int(test.sum())}, because "
            f"most of the {len(classes)} classes are too small to give one; join or drop small classes, or take a "
            "larger test"
        )


def _classes(target: Column, kind: str | None) -> tuple[Tensor | None, tuple[str, ...]]:
    """The class of each row, (N,) int64, and the names of the classes; None for regression."""
    if kind == "regression":
        return None, ()
    classes = tuple(sorted(set(target.values)))
    if not 2 <= len(classes) <= len(target.values) // 2:
        raise DataError(
            f"the target {target.name} must have 2 classes or more, with 2 rows for each on average, but has "
            f"{len(classes)} different values in {len(target.values)} rows; take another target, or kind=regression"
        )
    places = {name: place for place, name in enumerate(classes)}
    return torch.tensor([places[value] for value in target.values]), classes


def _numeric(target: Column) -> Tensor:
    """The targets, (N,) float64."""
    values, wrong = target.numbers(), target.no_number()
    if values is None or wrong is not None:
        line, text = wrong or (0, "")
        raise DataError(
            f"the target {target.name} must be a finite number in every row, but is {text!r} in line {line}; correct "
            "it, or take kind=classification if the target is a class"
        )
    return values
