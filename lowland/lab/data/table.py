"""Rows of numbers with a target each, and the columns of a text file as numbers."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from lowland.core.errors import DataError
from lowland.core.transfer import to_device

MISSING = {"", "?", "na", "n/a", "nan", "none", "null"}  # in any case
MOST = 100  # the largest number of categories of a column; a column with more is rather a name or a text


@dataclass(frozen=True, eq=False)
class Rows:
    """One part of the data, rows of numbers, as a :class:`lowland.lab.task.Dataset`.

    Args:
        inputs: The features, (N, F) float32.
        targets: The targets, (N,): float32 in multiples of ``unit``, or int64 classes.
        unit: What 1 means in the unit of the data, for targets that are standardized; 1 for classes.
    """

    inputs: Tensor
    targets: Tensor
    unit: float = 1.0

    def __len__(self) -> int:
        return len(self.targets)

    def to(self, device: torch.device, memory_format: torch.memory_format) -> Rows:
        """The same rows on a device, so that batches need not be copied to it."""
        del memory_format
        return replace(self, inputs=self.inputs.to(device), targets=self.targets.to(device))

    def batch(self, index: Tensor, generator: torch.Generator | None) -> tuple[Tensor, Tensor, Tensor]:
        """The batch at these positions: inputs (B, F), targets (B,), and the unit of each target (B,)."""
        del generator  # without augmentation
        index = to_device(index, self.targets.device)
        units = torch.full(index.shape, self.unit, device=self.targets.device)
        return self.inputs[index], self.targets[index], units


def standardized(train: Tensor, test: Tensor, name: str) -> tuple[Tensor, Tensor, float]:
    """Both parts of a target, (N,) float64, as float32 with mean 0 and standard deviation 1 in training; and this unit.

    Raises:
        DataError: All targets of the training part are equal.
    """
    if not _varies(train):
        raise DataError(f"{name} must differ between rows of the training part, but is always {float(train[0])}")
    mean, unit = train.mean(), train.std(correction=0)
    return ((train - mean) / unit).float(), ((test - mean) / unit).float(), float(unit)


def _varies(values: Tensor) -> bool:
    """Whether two values differ; the standard deviation of equal numbers may be above 0 by rounding."""
    return len(values) > 0 and bool(values.min() < values.max())


@dataclass(frozen=True)
class Column:
    """A column of a text file: its name, its values as text, and the line of each value."""

    name: str
    values: tuple[str, ...]
    lines: tuple[int, ...]

    def missing(self) -> list[bool]:
        """Which values are missing."""
        return [value.casefold() in MISSING for value in self.values]

    def numbers(self) -> Tensor | None:
        """The values, (N,) float64, NaN where they are missing; None if one of the others is no finite number."""
        numbers = [math.nan if gone else _number(v) for v, gone in zip(self.values, self.missing(), strict=True)]
        return None if None in numbers else torch.tensor(numbers, dtype=torch.float64)

    def refuse_missing(self) -> None:
        """Refuse a target that is missing.

        Raises:
            DataError: A value is missing.
        """
        if any(self.missing()):
            place = self.missing().index(True)
            raise DataError(
                f"the target {self.name} must be in every row, but is missing in line {self.lines[place]}, whose value "
                f"is {self.values[place]!r}; drop the row, or, if the value is the name of a class, rename it: empty, "
                "?, NA, N/A, nan, none and null mean a missing value"
            )

    def no_number(self) -> tuple[int, str] | None:
        """Line and text of the first value that is neither a finite number nor missing; None if there is none."""
        pairs = zip(self.values, self.missing(), strict=True)
        wrong = [place for place, (value, gone) in enumerate(pairs) if not gone and _number(value) is None]
        return (self.lines[wrong[0]], self.values[wrong[0]]) if wrong else None

    def refuse_stray(self) -> None:
        """Refuse a column of numbers in which a text is, because it would make a category of every number.

        Raises:
            DataError: More than half of the values that are there are numbers, but not all.
        """
        there = [value for value, gone in zip(self.values, self.missing(), strict=True) if not gone]
        count = sum(_number(value) is not None for value in there)
        if (wrong := self.no_number()) is not None and 2 * count > len(there):
            line, text = wrong
            raise DataError(
                f"the column {self.name} must be numbers or texts, but {count} of its {len(there)} values are finite "
                f"numbers, and line {line} has {text!r}; correct it, leave it empty if it is missing, or, if the "
                f"numbers are names, say categorical=('{self.name}',)"
            )


def _number(text: str) -> float | None:
    try:
        number = float(text)
    except ValueError:
        return None
    return number if math.isfinite(number) and "_" not in text else None


def columns_of(content: bytes, separator: str, file: str) -> dict[str, Column]:
    """The columns of a text file with a header, by name; spaces around a value are dropped, and so are empty lines.

    Args:
        content: The contents of the file, in UTF-8.
        separator: The character between two values.
        file: The file, for error messages.

    Raises:
        DataError: The file is not in UTF-8, has no rows, two columns of one name, or a row of another length.
    """
    try:
        text = io.StringIO(content.decode("utf-8-sig"), newline="")
        reader = csv.reader(text, delimiter=separator, strict=True)
        rows = [(reader.line_num, [value.strip() for value in row]) for row in reader if row]
    except UnicodeDecodeError as error:
        raise DataError(f"{file} must be a text file in UTF-8, but cannot be read ({error}); convert it") from None
    except csv.Error as error:
        raise DataError(
            f"{file} must be a table of values, but line {reader.line_num} cannot be read ({error}); correct its quotes"
        ) from None
    if len(rows) < 2:
        raise DataError(f"{file} must have a line of names and at least one row, but has {len(rows)} lines")
    (_, header), *body = rows
    if "" in header:
        raise DataError(
            f"every column of {file} must have a name, but column {header.index('') + 1} has none; name it, or write "
            "the file without it, such as by to_csv(index=False)"
        )
    doubles = sorted({name for name in header if header.count(name) > 1})
    if doubles:
        raise DataError(f"the columns of {file} must have different names, but two are {doubles[0]!r}; rename one")
    for line, row in body:
        if row == header:
            raise DataError(f"{file} must have its names once, but line {line} repeats them; delete this line")
        if len(row) != len(header):
            raise DataError(
                f"the rows of {file} must have {len(header)} values, as its first line, but line {line} has "
                f"{len(row)}; correct it, or give another separator"
            )
    lines = tuple(line for line, _ in body)
    return {name: Column(name, tuple(row[i] for _, row in body), lines) for i, name in enumerate(header)}


def encoded(columns: Sequence[Column], categorical: Sequence[str], train: Tensor) -> Tensor:
    """The columns as features, (N, F) float32; only the rows of the training part decide how.

    A column of numbers is standardized. A missing number becomes 0, the mean; if one is missing in the training part, a
    second feature is 1 for missing numbers and 0 for others. Any other column becomes one feature for each of its texts
    in the training part, which is 1 for that text and 0 for others; missing is a text of its own. Features that do not
    vary in the training part are left out.

    Args:
        columns: The columns.
        categorical: The names of columns of numbers that are texts.
        train: The positions of the training rows.

    Raises:
        DataError: A column has too many texts, or a text between numbers, or no feature is left.
    """
    features: list[Tensor] = []
    for column in columns:
        if column.name not in categorical:
            column.refuse_stray()
        numbers = None if column.name in categorical else column.numbers()
        features += _categories(column, train) if numbers is None else _standardized(numbers, train)
    if not features:
        raise DataError("at least one column besides the target must vary in the training part, but none does")
    return torch.stack(features, 1)


def _standardized(numbers: Tensor, train: Tensor) -> list[Tensor]:
    known = ~numbers.isnan()
    seen = numbers[train][known[train]]
    features = []
    if _varies(seen):
        features.append(((numbers - seen.mean()) / seen.std(correction=0)).nan_to_num(0.0).float())
    gone = ~known[train]
    return [*features, (~known).float()] if bool(gone.any() & ~gone.all()) else features


def _categories(column: Column, train: Tensor) -> list[Tensor]:
    pairs = zip(column.values, column.missing(), strict=True)
    values = ["" if gone else value for value, gone in pairs]
    texts = sorted({values[i] for i in train.tolist()})
    if len(texts) > MOST:
        raise DataError(
            f"{column.name} must be a column of numbers, or of at most {MOST} different texts, but has {len(texts)} in "
            f"the training part; leave it out with ignore=('{column.name}',)"
        )
    if len(texts) < 2:
        return []
    return [torch.tensor([float(value == text) for value in values]) for text in texts]


def divided(count: int, fraction: float, generator: torch.Generator, classes: Tensor | None = None) -> Tensor:
    """Which rows are the test part, bool of shape ``(N,)``.

    Args:
        count: The number of rows.
        fraction: The fraction of the test part, in (0, 1).
        generator: The random numbers of the choice.
        classes: The class of each row, (N,) int64, each of which gives this fraction; None gives it of all rows.
    """
    order = torch.randperm(count, generator=generator)
    groups = torch.zeros(count, dtype=torch.int64) if classes is None else classes
    test = torch.zeros(count, dtype=torch.bool)
    for group in range(int(groups.max()) + 1):
        members = order[groups[order] == group]
        test[members[: round(fraction * len(members))]] = True
    return test
