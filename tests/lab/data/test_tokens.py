from __future__ import annotations

import hashlib
import sys
from pathlib import Path

import pytest
from forked import python
from tokenizers.decoders import ByteLevel

from lowland.core.errors import ArgumentError, MissingExtraError
from lowland.lab.data import tokens
from lowland.lab.data.tokens import CLS, MARKS, SEP

TEXTS = ("the cat sat on the mat .", "The dogs sat on the cats .", "naïve [SEP] \N{GRINNING FACE}", "") * 3
SHOW = """
from hashlib import sha256
from lowland.lab.data import tokens
print(sha256(tokens.trained({!r}, 300, True).to_str().encode()).hexdigest())
"""


def test_tokens_of_equal_frequency_are_the_same_in_every_process(tmp_path: Path) -> None:
    (script := tmp_path / "show.py").write_text(SHOW.format(TEXTS), encoding="utf-8")
    others = [python([str(script)]).stdout.strip() for _ in range(2)]
    here = hashlib.sha256(tokens.trained(TEXTS, 300, True).to_str().encode()).hexdigest()
    assert others == [here, here]


def test_a_tokenizer_is_trained_once() -> None:
    assert tokens.trained(TEXTS, 280, True) is tokens.trained(tuple(TEXTS), 280, True)


@pytest.mark.parametrize("vocab", [259, 265, 4000])
def test_every_text_has_an_encoding_within_the_vocabulary(vocab: int) -> None:
    tokenizer = tokens.trained(TEXTS, vocab, False)
    text = "Ünseen \x00 words [CLS] 猫 [PAD]"
    (found,) = tokens.encoded(tokenizer, [(text,)], 1000)
    assert found[0] == CLS
    assert found[-1] == SEP
    assert all(MARKS <= token < vocab for token in found[1:-1])  # a mark's name in a text is no mark
    assert ByteLevel().decode([tokenizer.id_to_token(token - MARKS) for token in found[1:-1]]) == f" {text}"


def test_frequent_words_are_one_token() -> None:
    tokenizer = tokens.trained(TEXTS, 400, True)
    assert tokenizer.encode("the CAT sat").tokens == ["Ġthe", "Ġcat", "Ġsat"]
    assert tokens.trained(TEXTS, 400, False).encode("the CAT").tokens[0] == "Ġthe"
    assert len(tokens.trained(TEXTS, 400, False).encode("CAT").tokens) > 1


@pytest.mark.parametrize(("length", "expected"), [
    (9, [CLS, 1, 2, 3, 4, SEP, 5, 6, SEP]),
    (8, [CLS, 1, 2, 3, SEP, 5, 6, SEP]),
    (7, [CLS, 1, 2, SEP, 5, 6, SEP]),
    (6, [CLS, 1, SEP, 5, 6, SEP]),
    (5, [CLS, 1, SEP, 5, SEP]),
])  # fmt: skip
def test_a_pair_is_cut_at_its_longer_text(length: int, expected: list[int]) -> None:
    class Letters:
        def encode_batch(self, texts: list[str]) -> list[object]:
            return [type("Encoding", (), {"ids": [int(letter) - MARKS for letter in text]}) for text in texts]

    found = tokens.encoded(Letters(), [("1234", "56"), ("56", "1234"), ("", "")], length)
    assert found[0] == expected
    first, second = expected[1 : expected.index(SEP)], expected[expected.index(SEP) + 1 : -1]
    if len(first) > len(second) or length == 5:
        assert found[1] == [CLS, *second, SEP, *first, SEP]
    assert found[2] == [CLS, SEP, SEP]


def test_a_text_is_cut_at_its_end() -> None:
    tokenizer = tokens.trained(TEXTS, 300, True)
    (whole,), (cut,) = (tokens.encoded(tokenizer, [("the cat sat on the mat .",)], length) for length in (100, 5))
    assert cut == [*whole[:4], SEP]


def test_refusals() -> None:
    with pytest.raises(ArgumentError, match="vocab must be >= 259, three marks and all bytes, but is 258"):
        tokens.trained(TEXTS, 258, True)
    with pytest.raises(ArgumentError, match="length must be >= 5, the marks and a token of each text, but is 4"):
        tokens.encoded(tokens.trained(TEXTS, 300, True), [("a", "b")], 4)


def test_without_tokenizers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    with pytest.raises(MissingExtraError, match=r"tokenizers is not installed.*pip install 'lowland\[text\]'"):
        tokens.trained(("never trained before",), 300, True)
