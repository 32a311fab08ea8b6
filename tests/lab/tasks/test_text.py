"""What all classifications of texts share: tokens of the training part, losses of cut batches, fields."""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from made_texts import Pairs, labelled

from lowland.core.batch import Batches
from lowland.core.errors import ArgumentError, MissingExtraError
from lowland.lab import names
from lowland.lab.data import tokens
from lowland.lab.data.loader import Loader
from lowland.lab.models import seeded
from lowland.lab.recipe import Recipe
from lowland.testing import check_task


def batch(count: int = 9) -> tuple[torch.Tensor, ...]:
    return Pairs().datasets(None)["train"].batch(torch.arange(count), None)


def test_check_task_finds_nothing() -> None:
    assert check_task(Pairs()) == []


def test_the_tokenizer_is_trained_on_the_training_part() -> None:
    """A word that only the test part has is no token, however frequent it is."""

    @dataclass(frozen=True, kw_only=True)
    class Apart(Pairs):
        def labelled(self, root):
            test = type(labelled(1, 0, 2))((("zebra zebra", "zebra"),) * 50, (0,) * 50)
            return {"train": labelled(51, 1, 2), "validation": test, "test": test}

    parts, usual = Apart().datasets(None), Pairs().datasets(None)
    assert torch.equal(parts["train"].tokens, usual["train"].tokens)
    row = parts["test"].batch(torch.tensor([0]), None)[0][0]
    assert len(row) > 3 + 3  # marks, and a token for each zebra


def test_tokens_of_a_pair() -> None:
    rows, targets, index = batch()
    (first, second), label = labelled(51, 1, 2).texts[0], labelled(51, 1, 2).labels[0]
    texts = tuple(text for pair in labelled(51, 1, 2).texts for text in pair)
    tokenizer = tokens.trained(texts, 300, True)
    expected = [1]
    for text in (first, second):
        expected += [3 + token for token in tokenizer.encode(text).ids] + [2]
    assert rows[0][rows[0] != 0].tolist() == expected
    assert int(targets[0]) == label
    assert index.tolist() == list(range(9))


@pytest.mark.parametrize("most", [1, 2, 4])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_parts_of_a_batch_have_its_losses(most: int, smoothing: float) -> None:
    """A part keeps the padding of its batch; padded on its own, it has the same losses but for rounding."""
    task, recipe = Pairs(dropout=0.0), Recipe(label_smoothing=smoothing)
    model = seeded(lambda: task.model("encoder-tiny"), 0).double()
    both = batch()
    losses = task.training_loss(model, both, recipe)
    parts = Batches().split(both, most)
    assert torch.equal(torch.cat([part[0] for part in parts]), both[0])
    cut = torch.cat([task.training_loss(model, part, recipe) for part in parts])
    torch.testing.assert_close(cut, losses, rtol=1e-6, atol=1e-7)  # the losses are fp32
    narrow = [(rows[:, : int((rows != 0).sum(1).max())], *rest) for rows, *rest in parts]
    assert any(part[0].shape[1] < both[0].shape[1] for part in narrow)
    padded = torch.cat([task.training_loss(model, part, recipe) for part in narrow])
    torch.testing.assert_close(padded, losses, rtol=1e-6, atol=1e-7)


def test_parts_of_ranks_are_cut_from_one_padded_batch() -> None:
    parts = Pairs().datasets(None)
    whole = list(Loader(parts, 8, 0, drop_last=True).batches(0))
    ranks = [list(Loader(parts, 8, 0, drop_last=True, batch_part=(rank, 2)).batches(0)) for rank in (0, 1)]
    for full, *cut in zip(whole, *ranks, strict=True):
        for tensor, *pieces in zip(full, *cut, strict=True):
            assert torch.equal(torch.cat(pieces), tensor)


def test_evaluation_in_other_batches_is_the_same() -> None:
    task = Pairs()
    model, loader = seeded(lambda: task.model("encoder-tiny"), 0).double().eval(), Loader(task.datasets(None), 8, 0)
    with torch.no_grad():
        found = [torch.cat([task.judged(model, b)[0] for b in loader.evaluation(size)]) for size in (1, 7, 1000)]
    torch.testing.assert_close(found[0], found[2], rtol=1e-6, atol=1e-7)
    torch.testing.assert_close(found[1], found[2], rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize(("text", "message"), [
    ("vocab=258", "vocab must be an integer >= 259, but is 258"),
    ("length=4", "length must be an integer >= 5, but is 4"),
    ("dropout=1", r"dropout must be in \[0, 1\), but is 1"),
    ("lowercase=yes", "lowercase must be one of True, False, but is 'yes'"),
])  # fmt: skip
def test_refused_fields(text: str, message: str) -> None:
    with pytest.raises(ArgumentError, match=message):
        names.make(f"trec:{text}")


@pytest.mark.parametrize("lowercase", [True, False])
def test_capitals(lowercase: bool) -> None:
    @dataclass(frozen=True, kw_only=True)
    class Loud(Pairs):
        def labelled(self, root):
            texts = type(labelled(1, 0, 1))((("red red",), ("RED red",)), (0, 1))
            return {"train": texts, "test": texts}

    quiet, loud = Loud(lowercase=lowercase).datasets(None)["train"].batch(torch.arange(2), None)[0]
    assert torch.equal(quiet, loud) == lowercase


@pytest.mark.parametrize("name", ["sst2", "trec", "cola", "mrpc", "rte", "chars"])
def test_recipes_and_defaults(name: str) -> None:
    task = names.make(name)
    for model in task.models:
        recipe = task.recipe(model)
        assert (recipe.optimizer, recipe.schedule, recipe.warmup, recipe.clip) == ("adamw", "cosine", 0.1, 1.0)
        assert recipe.epochs == {"sst2": 3, "trec": 6}.get(name, 10)
        assert task.defaults("momentum-sam", model) == {"rho": 0.3}  # with 3, neither questions nor plays are learned
        assert task.defaults("sl-sam", model) == {"s": 0.9}
        assert task.defaults("looksam", model) == task.defaults("sam", model) == {}


def test_fields_of_pretrained_models(tmp_path: Path) -> None:
    with pytest.raises(ArgumentError, match="vocab must be left out with pretrained, whose own is used, but is 500"):
        names.make("sst2:pretrained=anything,vocab=500")
    with pytest.raises(ArgumentError, match="pretrained must be a name or a folder, but is 3; quote it"):
        names.make("sst2:pretrained=3")
    with pytest.raises(ArgumentError, match="weights must be None without pretrained, but is 'ab'; give pretrained"):
        names.make("trec:weights=ab")
    if importlib.util.find_spec("transformers") is None:
        with pytest.raises(MissingExtraError, match="transformers is not installed"):
            names.make(f"sst2:pretrained={tmp_path}")
    assert names.make("sst2:pretrained=anything,weights=ab").models == ("pretrained",)  # as reports read it
