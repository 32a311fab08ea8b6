"""The tasks of GLUE and TREC: parts, texts and labels of small files in the upstream layout, and of the real ones."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from text_files import SIZES, TREC, sentence

from lowland.core.errors import DataError
from lowland.lab import names
from lowland.lab.metric import Metric
from lowland.lab.tasks import glue, trec
from lowland.lab.tasks.text import TextClassification
from lowland.testing import check_task

TASKS = ("sst2", "trec", "cola", "mrpc", "rte")


def made(name: str) -> TextClassification:
    task = names.make(f"{name}:vocab=300,length=40")
    assert isinstance(task, TextClassification)
    return task


@pytest.mark.parametrize(("name", "files"), [
    ("sst2", {"train": "train", "validation": "dev", "test": "test-labeled"}),
    ("mrpc", {"train": "train", "validation": "dev", "test": "test-labeled"}),
    ("cola", {"train": "train", "test": "dev"}),
    ("rte", {"train": "train", "test": "dev"}),
    ("trec", {"train": "train", "test": "test-labeled"}),
])  # fmt: skip
def test_parts(text_files: Path, name: str, files: dict[str, str]) -> None:
    parts = made(name).labelled(text_files)
    assert {part: len(texts) for part, texts in parts.items()} == {part: SIZES[file] for part, file in files.items()}
    for part, file in files.items():
        draw = random.Random(file)
        expected = []
        for label in (number % 2 for number in range(SIZES[file])):
            first = sentence(draw, 0 if name in ("mrpc", "rte") else label)
            end = {"sst2": " ", "trec": " ?"}.get(name, "")
            pair = (first, sentence(draw, label)) if name in ("mrpc", "rte") else (first + end,)
            expected.append(pair)
        assert list(parts[part].texts) == expected
        classes = 6 if name == "trec" else 2
        assert list(parts[part].labels) == [number % classes for number in range(SIZES[file])]
    assert list(made(name).datasets(text_files)) == list(files)


@pytest.mark.parametrize("name", TASKS)
def test_check_task_finds_nothing(text_files: Path, name: str) -> None:
    assert check_task(made(name), "encoder-tiny", text_files) == []


@pytest.mark.parametrize(("name", "headline"), [
    ("sst2", "accuracy"), ("trec", "accuracy"), ("rte", "accuracy"), ("cola", "matthews"), ("mrpc", "f1"),
])  # fmt: skip
def test_headlines(name: str, headline: str) -> None:
    metrics: tuple[Metric, ...] = made(name).metrics
    assert [metric.name for metric in metrics] == list(dict.fromkeys([headline, "accuracy"]))
    assert all(metric.higher for metric in metrics)


def test_classes_of_trec() -> None:
    assert list(trec.CLASSES) == list(TREC)
    assert made("trec").classes == len(TREC)


@pytest.mark.parametrize(("name", "path", "content", "message"), [
    ("sst2", "glue/SST-2/dev.tsv", b"sentence\tlabel\na\t2\n", "sst2: glue/SST-2/dev.tsv, line 2, must have a label"),
    ("cola", "glue/CoLA/train.tsv", b"gj04\t1\t\ta\ngj04\t1\ta\n", "cola: glue/CoLA/train.tsv, line 2, must have 4"),
    ("mrpc", "glue/MRPC/test-labeled.tsv", b"Quality\n", "mrpc: glue/MRPC/test-labeled.tsv, line 1, must name the"),
    ("rte", "glue/RTE/dev.tsv", b"index\tsentence1\tsentence2\tlabel\n0\ta\tb\t1\n", "rte: glue/RTE/dev.tsv, line 2"),
    ("trec", "trec/test.txt", b"LOC:city Where ?\nWhere ?\n", "trec: trec/test.txt, line 2, must be LABEL:detail"),
])  # fmt: skip
def test_malformed_files_name_the_line(
    text_files: Path, put: Callable[..., Path], name: str, path: str, content: bytes, message: str
) -> None:
    put(path, content)
    with pytest.raises(DataError, match=f"{message}.*get it again from https"):
        made(name).datasets(text_files)


@pytest.mark.parametrize("name", TASKS)
def test_a_changed_file_is_refused(text_files: Path, name: str) -> None:
    (path,) = (p for p in text_files.rglob("train.t*") if p.parent.name.replace("-", "").lower() == name)
    path.write_bytes(path.read_bytes() + b"\n")
    with pytest.raises(DataError, match=f"{name}: .*train.* is not the upstream file: its MD5 must be"):
        made(name).datasets(text_files)


ROWS = {
    "sst2": {"train": 67_349, "validation": 872, "test": 1_821},
    "cola": {"train": 8_551, "test": 1_043},
    "mrpc": {"train": 3_668, "validation": 408, "test": 1_725},
    "rte": {"train": 2_490, "test": 277},
    "trec": {"train": 5_452, "test": 500},
}
CLASSES = {  # examples of each class of the test part
    "sst2": [917, 904],
    "cola": [322, 721],
    "mrpc": [578, 1_147],
    "rte": [131, 146],
    "trec": [9, 138, 94, 65, 81, 113],
}


@pytest.mark.data
@pytest.mark.parametrize("name", TASKS)
def test_real_rows(real: Callable[[str], Path], name: str) -> None:
    task = names.make(name)
    assert isinstance(task, TextClassification)
    parts = task.labelled(real("trec" if name == "trec" else "glue"))
    assert {part: len(texts) for part, texts in parts.items()} == ROWS[name]
    assert torch.bincount(torch.tensor(parts["test"].labels)).tolist() == CLASSES[name]
    assert all(text.strip() for part in parts.values() for texts in part.texts for text in texts)


@pytest.mark.data
@pytest.mark.parametrize("name", ["trec", "rte"])
def test_real_tokens(real: Callable[[str], Path], name: str) -> None:
    task = names.make(name)
    parts = task.datasets(real("trec" if name == "trec" else "glue"))
    assert int(parts["train"].tokens.max()) == 3999  # the training part fills the vocabulary
    cut = (parts["train"].lengths == task.length).float().mean()
    assert float(cut) < 0.01  # of the examples


def test_every_file_has_a_checksum() -> None:
    wanted = [
        f"glue/{folder}/{name}"
        for folder, parts in (
            ("SST-2", glue.THREE_PARTS), ("MRPC", glue.THREE_PARTS), ("CoLA", glue.DEV_IS_TEST),
            ("RTE", glue.DEV_IS_TEST),
        )
        for name in parts.values()
    ]  # fmt: skip
    assert set(wanted) == {name for name in glue.files.MD5 if name.startswith("glue/")}
