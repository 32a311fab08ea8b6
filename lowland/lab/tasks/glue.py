"""Four tasks of GLUE with labelled test parts: SST-2, CoLA, MRPC and RTE.

The unlabelled tests of GLUE are not used. SST-2 and MRPC have the labelled tests of their authors, so GLUE's
``dev.tsv`` is the validation part. CoLA and RTE have none, so ``dev.tsv`` is the test part, and a validation part is
held out of the training part with ``--validation``.

Reference: Wang et al., "GLUE: A Multi-Task Benchmark and Analysis Platform for Natural Language Understanding", ICLR
2019, arXiv:1804.07461.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from lowland.lab.data import files
from lowland.lab.data.tables import LabelledTexts, Table
from lowland.lab.metric import Metric
from lowland.lab.tasks.binary import F1, MATTHEWS
from lowland.lab.tasks.classification import ACCURACY
from lowland.lab.tasks.text import TextClassification

BINARY = {"0": 0, "1": 1}
ENTAILMENT = {"not_entailment": 0, "entailment": 1}
DEV_IS_TEST = {"train": "train.tsv", "test": "dev.tsv"}
THREE_PARTS = {"train": "train.tsv", "validation": "dev.tsv", "test": "test-labeled.tsv"}

SST2 = Table(columns=("sentence", "label"), texts=("sentence",), label="label", classes=BINARY)
COLA = Table(
    columns=("source", "label", "mark", "sentence"), texts=("sentence",), label="label", classes=BINARY, header=False
)
MRPC = Table(
    columns=("Quality", "#1 ID", "#2 ID", "#1 String", "#2 String"),
    texts=("#1 String", "#2 String"),
    label="Quality",
    classes=BINARY,
)
RTE = Table(
    columns=("index", "sentence1", "sentence2", "label"),
    texts=("sentence1", "sentence2"),
    label="label",
    classes=ENTAILMENT,
)


def read(
    folder: str, table: Table, parts: Mapping[str, str], root: Path | None, source: str
) -> dict[str, LabelledTexts]:
    """Read the parts of a task of GLUE.

    Args:
        folder: The folder of the task in ``glue/``.
        table: The layout of its files.
        parts: The file of each part.
        root: The data folder; None is the environment variable ``LOWLAND_DATA``.
        source: Where the files can be had, for error messages.

    Raises:
        DataError: No data folder is given; or a file is missing, unreadable, or differs from the expected one.
    """
    task, place = folder.replace("-", "").lower(), f"glue/{folder}"
    contents = files.read(task, place, list(parts.values()), root, source)
    return {
        part: table.read(task, f"{place}/{name}", content, source)
        for (part, name), content in zip(parts.items(), contents, strict=True)
    }


@dataclass(frozen=True, kw_only=True)
class Sst2(TextClassification):
    """Phrases of film reviews, positive or not: 67,349 for training, 872 for validation, 1,821 for the test.

    Reference: Socher et al., "Recursive Deep Models for Semantic Compositionality Over a Sentiment Treebank", EMNLP
    2013.
    """

    length: int = 80
    classes: ClassVar[int] = 2

    def settings(self, model: str) -> dict[str, Any]:
        """3 epochs, because one has 2,104 steps."""
        return {"epochs": 3}

    def labelled(self, root: Path | None) -> Mapping[str, LabelledTexts]:
        """See :func:`read`."""
        source = "https://github.com/eyalbd2/Reproducing-AutoPrompt (glue_data/SST-2)"
        return read("SST-2", SST2, THREE_PARTS, root, source)


@dataclass(frozen=True, kw_only=True)
class Cola(TextClassification):
    """English sentences, acceptable or not: 8,551 for training and 1,043 for the test.

    Reference: Warstadt, Singh, Bowman, "Neural Network Acceptability Judgments", TACL 2019, arXiv:1805.12471.
    """

    length: int = 64
    metrics: ClassVar[tuple[Metric, ...]] = (MATTHEWS, ACCURACY)
    classes: ClassVar[int] = 2

    def labelled(self, root: Path | None) -> Mapping[str, LabelledTexts]:
        """See :func:`read`."""
        return read("CoLA", COLA, DEV_IS_TEST, root, "https://github.com/F0restL1n/BERT (glue_data/CoLA)")


@dataclass(frozen=True, kw_only=True)
class Mrpc(TextClassification):
    """Pairs of sentences, paraphrases or not: 3,668 for training, 408 for validation, 1,725 for the test.

    Reference: Dolan, Brockett, "Automatically Constructing a Corpus of Sentential Paraphrases", IWP 2005.
    """

    metrics: ClassVar[tuple[Metric, ...]] = (F1, ACCURACY)
    classes: ClassVar[int] = 2

    def labelled(self, root: Path | None) -> Mapping[str, LabelledTexts]:
        """See :func:`read`."""
        source = "https://gluebenchmark.com/tasks (from msr_paraphrase_train.txt, msr_paraphrase_test.txt, dev_ids.tsv)"
        return read("MRPC", MRPC, THREE_PARTS, root, source)


@dataclass(frozen=True, kw_only=True)
class Rte(TextClassification):
    """Pairs of texts, whether the first entails the second: 2,490 for training and 277 for the test.

    Reference: Dagan, Glickman, Magnini, "The PASCAL Recognising Textual Entailment Challenge", MLCW 2005, and the
    challenges of 2006, 2007 and 2009.
    """

    length: int = 256
    classes: ClassVar[int] = 2

    def labelled(self, root: Path | None) -> Mapping[str, LabelledTexts]:
        """See :func:`read`."""
        return read("RTE", RTE, DEV_IS_TEST, root, "https://github.com/F0restL1n/BERT (glue_data/RTE)")
