"""TREC: questions of six classes, by what they ask for.

Reference: Li, Roth, "Learning Question Classifiers", COLING 2002.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from lowland.lab.data import files
from lowland.lab.data.tables import LabelledTexts, labelled_lines
from lowland.lab.tasks.text import TextClassification

SOURCE = "https://github.com/tonyzhaozh/few-shot-learning (data/trec)"
CLASSES = {name: number for number, name in enumerate(("ABBR", "DESC", "ENTY", "HUM", "LOC", "NUM"))}
FILES = {"train": "train.txt", "test": "test.txt"}


@dataclass(frozen=True, kw_only=True)
class Trec(TextClassification):
    """Questions by what they ask for, 6 classes: 5,452 for training and 500 for the test."""

    length: int = 64
    classes: ClassVar[int] = 6

    def settings(self, model: str) -> dict[str, Any]:
        """6 epochs: 83.3 % of a validation part were right then, as after the fourth (one seed)."""
        return {"epochs": 6}

    def labelled(self, root: Path | None) -> Mapping[str, LabelledTexts]:
        """Read ``trec/train.txt`` and ``trec/test.txt``; for errors see :func:`files.read`."""
        contents = files.read("trec", "trec", list(FILES.values()), root, SOURCE)
        return {
            part: labelled_lines("trec", f"trec/{name}", content, SOURCE, CLASSES)
            for (part, name), content in zip(FILES.items(), contents, strict=True)
        }
