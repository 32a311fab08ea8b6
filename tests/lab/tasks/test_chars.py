from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from text_files import play

from lowland.core.errors import ArgumentError, DataError
from lowland.lab import names
from lowland.lab.models import seeded
from lowland.lab.recipe import Recipe
from lowland.lab.tasks.chars import BITS, Chars
from lowland.testing import check_task


@dataclass(frozen=True, kw_only=True)
class Given(Chars):
    """Any text."""

    given: str = play(400)
    context: int = 8

    def text(self, root: Path | None) -> str:
        return self.given


@pytest.mark.parametrize("model", ["gpt-nano", "gpt-mini"])
@pytest.mark.parametrize("tied", [True, False])
def test_check_task_finds_nothing(text_files: Path, model: str, tied: bool) -> None:
    assert check_task(Chars(context=16, tied=tied), model, text_files) == []


def test_parts_follow_each_other(text_files: Path) -> None:
    parts = Chars(context=16).datasets(text_files)
    text = play(1200)
    assert {name: len(part.text) for name, part in parts.items()} == {"train": 1080, "validation": 60, "test": 60}
    characters = sorted(set(text[:1080]))
    joined = torch.cat([part.text for part in parts.values()])
    assert "".join(characters[symbol - 1] for symbol in joined) == text


def test_characters_that_the_training_part_does_not_have() -> None:
    parts = Given(given=play(380) + "\N{GREEK SMALL LETTER PSI}" * 20).datasets(None)
    assert int(parts["train"].text.min()) == 1
    assert parts["test"].text.tolist() == [0] * 20
    assert parts["validation"].text.tolist().count(0) == 0


def test_a_larger_alphabet_than_the_vocabulary() -> None:
    assert len(set(play(360))) > 11
    with pytest.raises(DataError, match=r"at most 11 different characters, vocab − 1, but has \d+; take vocab=\d+"):
        Given(vocab=12).datasets(None)
    exact = len(set(play(400)[:360])) + 1
    assert int(Given(vocab=exact).datasets(None)["train"].text.max()) == exact - 1


def test_a_part_without_a_window() -> None:
    with pytest.raises(DataError, match="at least 21 characters, a window and its last target, but has 20"):
        Given(context=20).datasets(None)


class Fixed(torch.nn.Module):
    """Gives the symbol 1 the probability 1/2, and 1/4 to the symbols 2 and 3, wherever it is."""

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        return torch.tensor([-math.inf, math.log(1 / 2), math.log(1 / 4), math.log(1 / 4)]).expand(*tokens.shape, 4)


def test_bits_by_hand() -> None:
    batches = [(None, torch.tensor([[1, 2], [1, 1]])), (None, torch.tensor([[3, 3]]))]
    pairs = [(Fixed()(batch[1]), batch) for batch in batches]
    assert BITS.over(pairs) == pytest.approx((1 + 2 + 1 + 1 + 2 + 2) / 6)
    assert not BITS.higher


def test_losses_by_hand() -> None:
    batch: Any = (torch.zeros(2, 2, dtype=torch.int64), torch.tensor([[1, 2], [1, 1]]))
    task = Chars()
    expected = torch.tensor([1.5, 1.0]) * math.log(2)
    torch.testing.assert_close(task.loss(Fixed(), batch), expected)
    torch.testing.assert_close(task.judged(Fixed(), batch)[0], expected)
    torch.testing.assert_close(task.training_loss(Fixed(), batch, Recipe()), expected)


def test_the_loss_in_bits_is_the_metric() -> None:
    task = Chars(context=16)
    model, data = seeded(lambda: task.model("gpt-nano"), 0), Given(context=16).datasets(None)["train"]
    batch = data.batch(torch.arange(5), None)
    with torch.no_grad():
        losses, logits = task.judged(model, batch)
    assert BITS.over([(logits, batch)]) == pytest.approx(float(losses.mean()) / math.log(2), rel=1e-6)


@pytest.mark.parametrize(("text", "message"), [
    ("context=0", "context must be an integer >= 1, but is 0"),
    ("vocab=1", "vocab must be an integer >= 2, but is 1"),
    ("tied=yes", "tied must be one of True, False, but is 'yes'"),
    ("dropout=-0.1", r"dropout must be in \[0, 1\), but is -0.1"),
])  # fmt: skip
def test_refused_fields(text: str, message: str) -> None:
    with pytest.raises(ArgumentError, match=message):
        names.make(f"chars:{text}")


def test_a_text_that_is_not_utf_8(text_files: Path, put: Callable[..., Path]) -> None:
    put("tinyshakespeare/input.txt", b"one\ntwo \xff")
    with pytest.raises(DataError, match=r"chars: tinyshakespeare/input.txt, line 2, must be UTF-8.*get it again from"):
        Chars().datasets(text_files)


@pytest.mark.data
def test_real_shakespeare(real: Callable[[str], Path]) -> None:
    parts = Chars().datasets(real("tinyshakespeare"))
    assert sum(len(part.text) for part in parts.values()) == 1_115_394
    assert {name: len(part) for name, part in parts.items()} == {"train": 7842, "validation": 435, "test": 435}
    assert sorted(parts["train"].text.unique().tolist()) == list(range(1, 66))
    assert all(int(part.text.min()) > 0 for part in parts.values())
