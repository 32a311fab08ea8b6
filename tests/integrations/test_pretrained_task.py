"""Texts by a pretrained model: its tokens and logits are those of transformers, and a training is one like others."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("transformers", exc_type=(ImportError, RuntimeError))
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

from made_texts import Pairs
from ranks import on_ranks
from safetensors.torch import load_file, save_file
from short_runs import METHODS, assert_resumes, config, trained
from text_files import WORDS
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    BertConfig,
    BertModel,
    DistilBertConfig,
    DistilBertModel,
    GPT2Config,
    GPT2Model,
    PreTrainedTokenizerFast,
    RobertaConfig,
    RobertaModel,
)

from lowland.core.errors import ArgumentError, DataError, UnknownNameError
from lowland.lab import names
from lowland.lab.models import seeded
from lowland.lab.tasks.glue import Sst2
from lowland.testing import check_task

MARKS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
VOCAB = {word: number for number, word in enumerate([*MARKS, "good", *(w.lower() for w in WORDS)])}
SIZES = {"vocab_size": len(VOCAB) + 3, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
STILL = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}  # dropout differs on each rank
KINDS: dict[str, Any] = {
    "bert without dropout": lambda: BertModel(
        BertConfig(**SIZES, **STILL, intermediate_size=32, max_position_embeddings=64)
    ),
    "bert": lambda: BertModel(BertConfig(**SIZES, intermediate_size=32, max_position_embeddings=64)),
    "roberta": lambda: RobertaModel(
        RobertaConfig(
            **SIZES, intermediate_size=32, max_position_embeddings=64, type_vocab_size=1, pad_token_id=0, bos_token_id=2
        )
    ),
    "distilbert": lambda: DistilBertModel(
        DistilBertConfig(vocab_size=len(VOCAB) + 3, dim=16, n_layers=2, n_heads=2, hidden_dim=32)
    ),
    "gpt2": lambda: GPT2Model(GPT2Config(vocab_size=len(VOCAB) + 3, n_embd=16, n_layer=2, n_head=2, n_positions=64)),
}


def saved(kind: str, folder: Path) -> Path:
    """The files of a small model with random weights and of its tokenizer."""
    torch.manual_seed(3)
    KINDS[kind]().save_pretrained(folder)
    made = Tokenizer(models.WordLevel(VOCAB, unk_token="[UNK]"))
    made.normalizer, made.pre_tokenizer = normalizers.Lowercase(), pre_tokenizers.WhitespaceSplit()
    made.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    more = {} if kind == "gpt2" else {"pad_token": "[PAD]"}
    own = PreTrainedTokenizerFast(
        tokenizer_object=made, unk_token="[UNK]", cls_token="[CLS]", sep_token="[SEP]", eos_token="[SEP]", **more
    )
    own.model_max_length = 60
    own.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return saved("bert", tmp_path_factory.mktemp("bert"))


@pytest.mark.parametrize("kind", KINDS)
def test_tokens_and_logits_are_those_of_transformers(kind: str, tmp_path: Path) -> None:
    task = Pairs(pretrained=str(saved(kind, tmp_path)))
    found = seeded(lambda: task.model("pretrained"), 0).eval()
    data, texts = task.datasets(None)["test"], task.labelled(None)["test"].texts
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    theirs = AutoModelForSequenceClassification.from_pretrained(tmp_path, num_labels=2).eval()
    theirs.load_state_dict(found.inner.state_dict())
    tokens, targets, _ = data.batch(torch.arange(20), None)
    with torch.no_grad():
        logits = found(tokens)
        for row, (one, other) in zip(logits, texts, strict=True):  # one after the other, so without padding
            asked = tokenizer(one, other, return_tensors="pt", return_token_type_ids=kind.startswith("bert"))
            theirs.config.pad_token_id = found.padding
            torch.testing.assert_close(row, theirs(**asked).logits[0], rtol=1e-5, atol=1e-6)
    assert targets.tolist() == list(task.labelled(None)["test"].labels)


def test_the_second_text_is_marked(folder: Path) -> None:
    """A batch says which text a token is of, so BERT gets its token types."""
    task = Pairs(pretrained=str(folder))
    model = task.model("pretrained")
    assert model.kinds
    tokens = task.datasets(None)["test"].batch(torch.tensor([0]), None)[0][0]
    one, other = task.labelled(None)["test"].texts[0]
    counts = ((tokens - 1) // model.vocab).tolist()
    assert counts == [0] * (len(one.split()) + 2) + [1] * (len(other.split()) + 1)


def test_body_from_the_file_head_from_the_seed(folder: Path) -> None:
    task = Pairs(pretrained=str(folder))
    first, again, other = (seeded(lambda: task.model("pretrained"), seed).state_dict() for seed in (0, 0, 1))
    file = load_file(folder / "model.safetensors")
    for name, value in first.items():
        assert torch.equal(value, again[name]), name
        body = name.removeprefix("inner.bert.")
        if body in file:
            assert torch.equal(value, file[body])
            assert value.dtype == torch.float32
    assert not torch.equal(first["inner.classifier.weight"], other["inner.classifier.weight"])
    assert sum(name.removeprefix("inner.bert.") in file for name in first) == len(file)
    assert seeded(lambda: task.model("pretrained"), 0).training


def test_the_task(folder: Path) -> None:
    task = Pairs(pretrained=str(folder))
    assert check_task(task) == []
    assert task.models == ("pretrained",)
    assert task.recipe("pretrained").lr == 3e-5
    assert task.defaults("looksam", "pretrained") == {}
    text = names.spell(Sst2(pretrained=str(folder)))
    assert text == f"sst2:pretrained={folder},weights={task.weights}"
    assert names.make(text) == Sst2(pretrained=str(folder))


@pytest.mark.parametrize("method", METHODS)
def test_methods_train_it(folder: Path, tmp_path: Path, method: str) -> None:
    end = trained(tmp_path, config(Pairs(pretrained=str(folder)), method))
    assert not end.get("diverged")
    assert 0 <= end["test"]["accuracy"] <= 1


def test_it_resumes(folder: Path, tmp_path: Path) -> None:
    assert_resumes(tmp_path, config(Pairs(pretrained=str(folder)), "looksam:k=3"))


def test_two_ranks_train_as_one_process_does(tmp_path: Path) -> None:
    made = config(Pairs(pretrained=str(saved("bert without dropout", tmp_path / "model"))), "sam")
    alone = trained(tmp_path / "alone", made)
    first, second = on_ranks(2, trained, tmp_path / "ranks", replace(made, mesh="data=2"))
    assert first["weights_sha256"] == second["weights_sha256"]
    assert first["test"]["loss"] == pytest.approx(alone["test"]["loss"], rel=1e-4)


def test_other_files_are_refused(tmp_path: Path) -> None:
    task = Pairs(pretrained=str(saved("bert", tmp_path)))
    file = tmp_path / "model.safetensors"
    save_file({name: value + 1 for name, value in load_file(file).items()}, file, metadata={"format": "pt"})
    with pytest.raises(DataError, match=f"must have files with the hash {task.weights}, but has"):
        task.model("pretrained")
    with pytest.raises(DataError, match="they have changed since this task was named"):
        task.datasets(None)
    assert Pairs(pretrained=str(tmp_path)).weights != task.weights


def test_refusals(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ArgumentError, match="length must be <= 60, the tokens that the model takes, but is 61"):
        Pairs(pretrained=str(folder), length=61).datasets(None)
    with pytest.raises(UnknownNameError, match="unknown model 'encoder-tiny'"):
        Pairs(pretrained=str(folder)).model("encoder-tiny")
    with pytest.raises(ArgumentError, match="must be a folder, or a model on the Hugging Face Hub"):
        Pairs(pretrained="nobody/has-this-model")
    with pytest.raises(ArgumentError, match=f"with weights in safetensors files, but {tmp_path} has none"):
        Pairs(pretrained=str(tmp_path))
    (tmp_path / "config.json").write_text('{"model_type": "none"}')
    save_file({"a": torch.zeros(1)}, tmp_path / "model.safetensors")
    with pytest.raises(ArgumentError, match="must be a model that transformers can make a classifier of"):
        Pairs(pretrained=str(tmp_path)).model("pretrained")
