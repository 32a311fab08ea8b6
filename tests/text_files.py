"""Small files of texts in the upstream layouts."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path

import pytest

WORDS = ("red", "green", "blue", "Yellow", "black", "white", "grey", "brown", "pink", "can 't", '" quoted', "naïve")
GOOD = "good"  # the word that decides the class
TREC = ("ABBR", "DESC", "ENTY", "HUM", "LOC", "NUM")
ENTAILMENT = ("not_entailment", "entailment")
SIZES = {"train": 40, "dev": 12, "test-labeled": 14}


def sentence(draw: random.Random, label: int) -> str:
    """3 to 12 words; those of class 1 have a word that the others do not have."""
    words = draw.choices(WORDS, k=draw.randint(3, 12))
    return " ".join([*words, GOOD] if label else words)


def lines(part: str, make: Callable[[random.Random, int, int], str]) -> list[str]:
    """The lines of a part, with labels 0 and 1 in turn."""
    draw = random.Random(part)
    return [make(draw, number, number % 2) for number in range(SIZES[part])]


@pytest.fixture
def text_files(put: Callable[..., Path], tmp_path: Path) -> Path:
    """All files of sst2, trec, cola, mrpc, rte and chars."""
    for part in SIZES:
        sst2 = ["sentence\tlabel", *lines(part, lambda draw, _, label: f"{sentence(draw, label)} \t{label}")]
        end = "\r\n" if part == "test-labeled" else "\n"  # as upstream
        put(f"glue/SST-2/{part}.tsv", (end.join(sst2) + end).encode())
        mrpc = lines(part, lambda draw, n, label: f"{label}\t{n}\t{n}\t{sentence(draw, 0)}\t{sentence(draw, label)}")
        header = "Quality\t#1 ID\t#2 ID\t#1 String\t#2 String"
        put(f"glue/MRPC/{part}.tsv", ("\n".join([header, *mrpc]) + "\n").encode(), packed=part == "dev")
    for part in ("train", "dev"):
        cola = lines(part, lambda draw, _, label: f"gj04\t{label}\t{'*' if not label else ''}\t{sentence(draw, label)}")
        put(f"glue/CoLA/{part}.tsv", "\n".join(cola).encode())  # without an end of the last line, as upstream
        rte = lines(
            part, lambda draw, n, label: f"{n}\t{sentence(draw, 0)}\t{sentence(draw, label)}\t{ENTAILMENT[label]}"
        )
        put(f"glue/RTE/{part}.tsv", ("index\tsentence1\tsentence2\tlabel\n" + "\n".join(rte) + "\n").encode())
    for part, name in (("train", "train"), ("test-labeled", "test")):
        trec = lines(part, lambda draw, n, label: f"{TREC[n % 6]}:fine {sentence(draw, label)} ?")
        put(f"trec/{name}.txt", "\n".join(trec).encode())
    put("tinyshakespeare/input.txt", play(1200).encode())
    return tmp_path


def play(count: int) -> str:
    """A text of ``count`` characters."""
    draw = random.Random(1)
    return " ".join(draw.choices(WORDS, k=count))[:count]
