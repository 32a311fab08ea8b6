"""Tokens: a tokenizer that is trained on texts, and the encoding of texts and pairs for a transformer.

An example is ``[CLS] a [SEP]`` or ``[CLS] a [SEP] b [SEP]``. The tokenizer does not know these marks, so a text that
contains their names is text like any other.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from itertools import chain
from typing import TYPE_CHECKING

from lowland.core.errors import ArgumentError, MissingExtraError

if TYPE_CHECKING:
    from tokenizers import Tokenizer

PAD, CLS, SEP = 0, 1, 2
MARKS = 3  # the tokens of texts are numbered from here
BYTES = 256  # the alphabet


@lru_cache(maxsize=2)
def trained(texts: tuple[str, ...], vocab: int, lowercase: bool) -> Tokenizer:
    """Train a byte-pair encoding; the same texts give the same tokenizer, in every process.

    Its alphabet is the 256 bytes, so every text has an encoding, and no token stands for unknown characters. Merges of
    equal frequency are made in the order of their tokens. The last two tokenizers are kept in memory.

    Args:
        texts: The texts of the training part.
        vocab: The largest number of tokens, >= 259, with the three marks. Few texts give fewer tokens.
        lowercase: Whether capital letters become small ones.

    Raises:
        ArgumentError: ``vocab`` is too small.
        MissingExtraError: The package tokenizers is not installed.

    Reference: Sennrich, Haddow, Birch, "Neural Machine Translation of Rare Words with Subword Units", ACL 2016,
    arXiv:1508.07909.
    """
    if vocab < MARKS + BYTES:
        raise ArgumentError(
            f"vocab must be >= {MARKS + BYTES}, three marks and all bytes, but is {vocab}; take a few thousand"
        )
    try:
        from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers
    except ImportError:
        raise MissingExtraError("tokenizers", "text") from None
    tokenizer = Tokenizer(models.BPE())
    if lowercase:
        tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    # A WordPiece trainer would number its pieces in the order of a hash table, which differs from process to process.
    trainer = trainers.BpeTrainer(
        vocab_size=vocab - MARKS,
        min_frequency=2,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer, length=len(texts))
    return tokenizer


def encoded(tokenizer: Tokenizer, examples: Sequence[tuple[str, ...]], length: int) -> list[list[int]]:
    """The tokens of examples, with marks and without padding.

    Args:
        tokenizer: The tokenizer, from :func:`trained`.
        examples: For each example its texts, all examples with equally many.
        length: The largest number of tokens of an example. A longer one loses tokens at the end of its texts, of the
            longer text first.

    Raises:
        ArgumentError: ``length`` leaves no room for a token of each text.
    """
    count = len(examples[0])
    room = length - 1 - count
    if room < count:
        raise ArgumentError(
            f"length must be >= {1 + 2 * count}, the marks and a token of each text, but is {length}; take 128"
        )
    encodings = tokenizer.encode_batch(list(chain.from_iterable(examples)))
    pieces = [[MARKS + token for token in encoding.ids] for encoding in encodings]
    return [_marked(_fitted(pieces[at : at + count], room)) for at in range(0, len(pieces), count)]


def _fitted(pieces: list[list[int]], room: int) -> list[list[int]]:
    """The pieces with together at most ``room`` tokens."""
    sizes = [len(piece) for piece in pieces]
    while sum(sizes) > room:
        longest, *others = sorted(sizes, reverse=True)
        excess = sum(sizes) - room
        sizes[sizes.index(longest)] -= min(excess, longest - others[0]) or 1 if others else excess
    return [piece[:size] for piece, size in zip(pieces, sizes, strict=True)]


def _marked(pieces: list[list[int]]) -> list[int]:
    return [CLS, *chain.from_iterable((*piece, SEP) for piece in pieces)]
