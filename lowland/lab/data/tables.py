"""Reads labelled texts from upstream tables: tab-separated values without quotes, and lines with a label in front."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from lowland.core.errors import DataError


@dataclass(frozen=True)
class LabelledTexts:
    """One part of the data: texts, or pairs of texts, and their labels.

    Args:
        texts: For each example its texts, one or two.
        labels: For each example the number of its class.
    """

    texts: tuple[tuple[str, ...], ...]
    labels: tuple[int, ...]

    def __len__(self) -> int:
        return len(self.labels)


@dataclass(frozen=True, kw_only=True)
class Table:
    """The layout of a file of tab-separated values.

    Args:
        columns: The names of all columns, in order.
        texts: The columns with the texts, one or two.
        label: The column with the label.
        classes: For each label, as it is in the file, the number of its class.
        header: Whether the first line has the names of the columns.
    """

    columns: Sequence[str]
    texts: Sequence[str]
    label: str
    classes: Mapping[str, int]
    header: bool = True

    def read(self, task: str, name: str, content: bytes, source: str) -> LabelledTexts:
        """Read the examples of a file.

        Quotes are characters like others, because GLUE's sentences have single ones.

        Args:
            task: The name of the task, for error messages.
            name: The name of the file, for error messages.
            content: The file, UTF-8.
            source: The download address of the file, for error messages.

        Raises:
            DataError: The file is not UTF-8 or has no example; or a line has another number of cells, or an unknown
                label.
        """
        lines = csv.reader(
            io.StringIO(decoded(task, name, content, source), newline=""), delimiter="\t", quoting=csv.QUOTE_NONE
        )
        try:
            examples = list(self._examples(f"{task}: {name}", lines, f"get it again from {source}"))
        except csv.Error as error:
            raise DataError(
                f"{task}: {name}, line {lines.line_num}, cannot be read ({error}); get it again from {source}"
            ) from error
        if not examples:
            raise DataError(f"{task}: {name} must hold at least one example, but has none; get it again from {source}")
        texts, labels = zip(*examples, strict=True)
        return LabelledTexts(texts, labels)

    def _examples(self, place: str, lines: Iterator[list[str]], remedy: str) -> Iterator[tuple[tuple[str, ...], int]]:
        columns = list(self.columns)
        texts, label = [columns.index(column) for column in self.texts], columns.index(self.label)
        for number, cells in enumerate(lines, 1):
            if number == 1 and self.header:
                if cells != columns:
                    raise DataError(
                        f"{place}, line 1, must name the columns {', '.join(columns)}, but is {cells!r}; {remedy}"
                    )
                continue
            if len(cells) != len(columns):
                raise DataError(
                    f"{place}, line {number}, must have {len(columns)} cells ({', '.join(columns)}), separated by "
                    f"tabs, but has {len(cells)}; {remedy}"
                )
            yield tuple(cells[at] for at in texts), known(self.classes, cells[label], f"{place}, line {number}", remedy)


def labelled_lines(task: str, name: str, content: bytes, source: str, classes: Mapping[str, int]) -> LabelledTexts:
    """Read lines of the form ``LABEL:detail text``; the detail is left out.

    Args:
        task: The name of the task, for error messages.
        name: The name of the file, for error messages.
        content: The file, UTF-8.
        source: The download address of the file, for error messages.
        classes: For each label, as it is in the file, the number of its class.

    Raises:
        DataError: The file is not UTF-8 or has no example; or a line has another form, or an unknown label.
    """
    texts, labels, remedy = [], [], f"get it again from {source}"
    for number, line in enumerate(decoded(task, name, content, source).removesuffix("\n").split("\n"), 1):
        front, space, text = line.removesuffix("\r").partition(" ")
        label, colon, _ = front.partition(":")
        if not (space and colon):
            raise DataError(
                f"{task}: {name}, line {number}, must be LABEL:detail and a text, but is {line[:60]!r}; {remedy}"
            )
        texts.append((text,))
        labels.append(known(classes, label, f"{task}: {name}, line {number}", remedy))
    return LabelledTexts(tuple(texts), tuple(labels))


def known(classes: Mapping[str, int], label: str, place: str, remedy: str) -> int:
    """The class of a label.

    Raises:
        DataError: There is no such label.
    """
    if label not in classes:
        raise DataError(f"{place}, must have a label of {', '.join(classes)}, but has {label!r}; {remedy}")
    return classes[label]


def decoded(task: str, name: str, content: bytes, source: str) -> str:
    """A file as text; line ends stay as they are.

    Raises:
        DataError: The file is not UTF-8.
    """
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b"\n") + 1
        raise DataError(
            f"{task}: {name}, line {line}, must be UTF-8, but {error}; get it again from {source}"
        ) from None
