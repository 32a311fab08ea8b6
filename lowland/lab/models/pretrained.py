"""Pretrained transformers from the Hugging Face Hub or from a folder, with the tokenizers that belong to them.

The tokens of an example are numbered from 1, so that 0 is padding for every model; those of its second text are
numbered behind all tokens of the first, so that a batch of tokens says which text each belongs to.
"""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache, lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lowland.core.errors import ArgumentError, DataError, MissingExtraError
from lowland.core.outside import hashed

PATTERNS = ("*.json", "*.txt", "*.model", "*.safetensors")  # configuration, vocabulary and weights
PAD = 0


def folder_of(name: str) -> Path:
    """The folder with the files of a pretrained model; those of the Hub are downloaded unless they are at hand.

    Args:
        name: A folder, or the name of a model on the Hub, such as distilbert-base-uncased.

    Raises:
        MissingExtraError: The package transformers is not installed.
        ArgumentError: There is no such folder, and the Hub cannot be reached or has no such model.
    """
    if importlib.util.find_spec("transformers") is None:
        raise MissingExtraError("transformers", "hf")
    place = Path(name).expanduser()
    return place if place.is_dir() else _downloaded(name)


@cache
def _downloaded(name: str) -> Path:
    """The folder of a model of the Hub, which is asked once in a process."""
    hub = _package("huggingface_hub")
    try:
        return Path(hub.snapshot_download(name, allow_patterns=list(PATTERNS)))
    except Exception as error:  # of the network, the Hub, its cache, or a name that it does not allow
        raise ArgumentError(
            f"pretrained must be a folder, or a model on the Hugging Face Hub that can be loaded, but {name!r} cannot "
            f"be ({type(error).__name__}: {str(error).splitlines()[0]}); correct the name, or give the folder of "
            "model.save_pretrained and tokenizer.save_pretrained"
        ) from error


def digest(folder: Path) -> str:
    """A hash of the files of a pretrained model, which belongs to the identity of a run.

    Raises:
        ArgumentError: The folder has no weights in a safetensors file.
    """
    files = sorted({file for pattern in PATTERNS for file in folder.glob(pattern)})
    if not any(file.suffix == ".safetensors" for file in files):
        raise ArgumentError(
            f"pretrained must be a folder with weights in safetensors files, but {folder} has none; write them with "
            "model.save_pretrained"
        )
    return hashed("".join(f"{file.name} {_hash(file, file.stat().st_mtime_ns)}\n" for file in files).encode())


@lru_cache(maxsize=64)
def _hash(file: Path, changed: int) -> str:
    """The hash of a file that was changed last at this time; weights are large, and asked for with every model."""
    del changed  # only a part of the key
    return hashed(file.read_bytes())


def verified(name: str, expected: str | None) -> Path:
    """The folder of a pretrained model, whose files have the expected hash.

    Raises:
        DataError: The files have another hash.
    """
    folder = folder_of(name)
    actual = digest(folder)
    if expected is not None and actual != expected:
        raise DataError(
            f"{name} must have files with the hash {expected}, but has {actual}: they have changed since this task was "
            "named; leave out the field weights, and name the task by pretrained alone"
        )
    return folder


def encoded(folder: Path, examples: Sequence[tuple[str, ...]], length: int) -> list[list[int]]:
    """The tokens of examples by the model's own tokenizer, with its marks and without padding, numbered from 1.

    Args:
        folder: The folder of the model.
        examples: For each example its text, or its two texts.
        length: The largest number of tokens of an example; of longer ones the ends are cut, of the longer text first.

    Raises:
        ArgumentError: The model takes fewer tokens, or the tokenizer has tokens that the model does not know.
    """
    transformers = _package("transformers")
    with _quiet(transformers):
        config = transformers.AutoConfig.from_pretrained(folder)
        tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    most = min(getattr(config, "max_position_embeddings", length), tokenizer.model_max_length)
    if length > most:
        raise ArgumentError(f"length must be <= {most}, the tokens that the model takes, but is {length}; lower it")
    columns = [list(column) for column in zip(*examples, strict=True)]
    encoding = tokenizer(*columns, truncation=True, max_length=length, return_token_type_ids=True)
    known = config.vocab_size
    if max(token for tokens in encoding["input_ids"] for token in tokens) >= known:
        raise ArgumentError(f"the tokenizer in {folder} must have at most the model's {known} tokens, but has more")
    pairs = zip(encoding["input_ids"], encoding["token_type_ids"], strict=True)
    return [[1 + token + kind * known for token, kind in zip(*pair, strict=True)] for pair in pairs]


def classifier(folder: Path, classes: int) -> nn.Module:
    """The pretrained model with a new head, whose weights are drawn from torch's global random numbers, in fp32.

    Args:
        folder: The folder of the model.
        classes: The number of logits.

    Raises:
        ArgumentError: transformers cannot make a classifier from the folder.
    """
    transformers = _package("transformers")
    try:
        with _quiet(transformers):
            inner = transformers.AutoModelForSequenceClassification.from_pretrained(
                folder, num_labels=classes, dtype=torch.float32, ignore_mismatched_sizes=True
            )
            tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    except (ValueError, OSError, KeyError) as error:
        raise ArgumentError(
            f"pretrained must be a model that transformers can make a classifier of, but {folder} is not "
            f"({type(error).__name__}: {str(error).splitlines()[0]}); take an encoder such as distilbert-base-uncased"
        ) from error
    if inner.config.pad_token_id is None:  # models of text have none, and find the last token by it
        inner.config.pad_token_id = next(
            (token for token in (tokenizer.pad_token_id, tokenizer.eos_token_id) if token is not None), 0
        )
    return Classifier(inner.train())


class Classifier(nn.Module):
    """Takes tokens as :func:`encoded` numbers them, and gives logits.

    Args:
        inner: A model of transformers for the classification of sequences.
    """

    def __init__(self, inner: Any) -> None:
        super().__init__()
        self.inner = inner
        self.vocab: int = inner.config.vocab_size
        self.padding: int = inner.config.pad_token_id
        self.kinds: bool = getattr(inner.config, "type_vocab_size", 0) > 1

    def forward(self, tokens: Tensor) -> Tensor:
        """Logits ``(B, classes)`` for tokens ``(B, T)`` with 0 behind."""
        shown = tokens != PAD
        numbers = tokens - 1
        ids = torch.where(shown, numbers % self.vocab, self.padding)
        more = {"token_type_ids": torch.where(shown, numbers // self.vocab, 0)} if self.kinds else {}
        logits: Tensor = self.inner(input_ids=ids, attention_mask=shown.long(), **more).logits
        return logits


def _package(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError:
        raise MissingExtraError("transformers", "hf") from None


@contextmanager
def _quiet(transformers: Any) -> Iterator[None]:
    """Without the note that the head is new, which is what is wanted, and without bars among those of trainings."""
    logging = transformers.utils.logging
    before, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(before)
        if bars:
            logging.enable_progress_bar()
