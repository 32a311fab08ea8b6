"""Transfer: the classes of each side, the weights that are loaded and those that are refused, and short trainings."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from ranks import on_ranks
from safetensors.torch import load_file, save_file
from short_runs import METHODS, assert_resumes, config, trained

from lowland.core.errors import ArgumentError, DataError
from lowland.lab import names
from lowland.lab.budget import Budget
from lowland.lab.models import MODELS
from lowland.lab.tasks.digits import load
from lowland.lab.tasks.transfer import Transfer
from lowland.lab.training.prepare import line_of, loader_of
from lowland.lab.training.trainer import fresh_model
from lowland.methods import make
from lowland.testing import check_task


@pytest.fixture(scope="module")
def start(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished pre-training of four steps on the digits 0 to 4."""
    folder = tmp_path_factory.mktemp("pretrained")
    trained(folder, config(Transfer(source="digits", side="pretrain"), "plain", seed=5))
    return folder


@pytest.fixture
def tuning(start: Path) -> Transfer:
    """The fine-tuning on the digits 5 to 9."""
    return Transfer(source="digits", start=str(start), examples=100)


def weights_of(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(next(folder.glob("checkpoints/step-*/weights.safetensors")))


def identity(task: Transfer) -> str:
    made = config(task)
    return str(line_of(made, loader_of(made), make("sam"))["run"])


def test_the_sides_divide_the_classes() -> None:
    images = load()
    for part in ("train", "test"):
        every = images.train_targets if part == "train" else images.test_targets
        first, others = (Transfer(source="digits", side=side).datasets(None)[part] for side in ("pretrain", "scratch"))
        assert torch.equal(first.targets, every[every < 5])
        assert torch.equal(others.targets, every[every >= 5] - 5)
    other = Transfer(source="digits", side="scratch").datasets(None)["train"]
    assert torch.equal(other.inputs, images.train_inputs[images.train_targets >= 5])


def test_another_number_of_classes() -> None:
    first, others = (Transfer(source="digits", side=side, first=7) for side in ("pretrain", "scratch"))
    assert (first.classes, others.classes) == (7, 3)
    assert others.datasets(None)["test"].targets.unique().tolist() == [0, 1, 2]


def test_noise_and_examples_of_the_fine_tuning() -> None:
    clean, noisy = (Transfer(source="digits", side="scratch", examples=50, noise=noise) for noise in (0.0, 0.2))
    one, other = clean.datasets(None)["train"].targets, noisy.seeded(1).datasets(None)["train"].targets
    assert torch.bincount(one).tolist() == [10] * 5
    assert int((one != other).sum()) == 10
    assert int(other.max()) <= 4


def test_the_weights_of_the_run_and_a_new_head(tuning: Transfer, start: Path) -> None:
    saved = weights_of(start)
    one, other = (fresh_model(config(tuning, seed=seed)).state_dict() for seed in (0, 1))
    for name, value in one.items():
        if name.startswith("5."):
            assert not torch.equal(value, saved[name])
            assert not torch.equal(value, other[name])
        else:
            assert torch.equal(value, saved[name])
            assert torch.equal(value, other[name])


def test_a_file_of_weights_starts_like_the_run(tuning: Transfer, start: Path) -> None:
    file = next(start.glob("checkpoints/step-*/weights.safetensors"))
    same = Transfer(source="digits", start=str(file))
    assert same.weights == tuning.weights
    one, other = (fresh_model(config(task)).state_dict() for task in (tuning, same))
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_a_model_from_elsewhere_is_started_too(tuning: Transfer, start: Path) -> None:
    made = replace(config(tuning), model=lambda: MODELS["mlp"]((1, 8, 8), 5))
    assert torch.equal(fresh_model(made).state_dict()["1.weight"], weights_of(start)["1.weight"])


def test_the_task(tuning: Transfer) -> None:
    assert check_task(tuning) == []
    assert check_task(Transfer(source="digits", side="pretrain")) == []
    text = names.spell(tuning)
    assert f"weights={tuning.weights}" in text
    assert names.make(text) == tuning


def test_the_identity_has_the_weights(start: Path, tmp_path: Path) -> None:
    file = tmp_path / "w.safetensors"
    weights = weights_of(start)
    save_file(weights, file)
    before = Transfer(source="digits", start=str(file))
    first = identity(before)
    assert identity(Transfer(source="digits", start=str(file))) == first
    weights["1.bias"] = weights["1.bias"] + 1
    save_file(weights, file)
    assert identity(Transfer(source="digits", start=str(file))) != first
    with pytest.raises(DataError, match=rf"must have the hash {before.weights}, but has"):
        fresh_model(config(before))


def test_recipes() -> None:
    source = names.make("digits").recipe("mlp")
    tune, pretrain, scratch = (
        Transfer(source="digits", side=side).recipe("mlp") for side in ("finetune", "pretrain", "scratch")
    )
    assert pretrain == scratch == source
    assert tune == source.replace(lr=tune.lr)
    assert 0 < tune.lr <= source.lr


@pytest.mark.parametrize("method", METHODS)
def test_methods_train_it(tuning: Transfer, tmp_path: Path, method: str) -> None:
    end = trained(tmp_path, config(tuning, method))
    assert not end.get("diverged")
    assert 0 <= end["test"]["accuracy"] <= 1


def test_it_resumes(tuning: Transfer, tmp_path: Path) -> None:
    assert_resumes(tmp_path, config(tuning, "looksam:k=3"))


@pytest.mark.slow
def test_two_ranks_train_as_one_process_does(tuning: Transfer, tmp_path: Path) -> None:
    made = config(tuning, "sampa")
    alone = trained(tmp_path / "alone", made)
    ends = on_ranks(2, trained, tmp_path / "ranks", replace(made, mesh="data=2"))
    assert ends[0]["test"]["accuracy"] == alone["test"]["accuracy"]
    for name, value in weights_of(tmp_path / "ranks").items():
        torch.testing.assert_close(value, weights_of(tmp_path / "alone")[name], rtol=1e-6, atol=1e-6)


def test_without_a_start() -> None:
    with pytest.raises(ArgumentError, match=r"start must name the run .*`lowland train --task transfer:source=digits"):
        fresh_model(config(Transfer(source="digits")))


def test_a_start_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(ArgumentError, match="make a run with: lowland train --task transfer:side=pretrain"):
        Transfer(start=str(tmp_path / "nothing"))


def test_a_run_that_has_not_finished(tmp_path: Path) -> None:
    made = replace(config(Transfer(source="digits", side="pretrain"), "plain"), checkpoint_every=2)
    assert trained(tmp_path, made, deadly=2) is None
    with pytest.raises(ArgumentError, match=r"start must be a finished run, but .* has not finished"):
        Transfer(source="digits", start=str(tmp_path))


def test_a_run_on_the_same_classes(start: Path, tmp_path: Path) -> None:
    trained(tmp_path, config(names.make("digits"), "plain"))
    with pytest.raises(ArgumentError, match=r"which has not seen the classes .* is one of digits; make one with"):
        Transfer(source="digits", start=str(tmp_path))
    with pytest.raises(ArgumentError, match="start must be a run of transfer:source=digits,first=6,side=pretrain"):
        Transfer(source="digits", start=str(start), first=6)


def test_a_file_of_a_run_on_the_same_classes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trained(tmp_path, config(names.make("digits"), "plain"))
    file = next(tmp_path.glob("checkpoints/step-*/weights.safetensors"))
    with pytest.raises(ArgumentError, match=r"which has not seen the classes .* is one of digits; make one with"):
        Transfer(source="digits", start=str(file))
    monkeypatch.chdir(file.parent)
    with pytest.raises(ArgumentError, match=r"which has not seen the classes .* is one of digits; make one with"):
        Transfer(source="digits", start=file.name)


def test_a_run_that_diverged(tmp_path: Path) -> None:
    made = config(Transfer(source="digits", side="pretrain"), "plain")
    trained(tmp_path, replace(made, recipe=made.recipe.replace(lr=1e9), budget=replace(made.budget, limit=20)))
    with pytest.raises(ArgumentError, match=r"start must be a run that has learned, but .* diverged; take a lower"):
        Transfer(source="digits", start=str(tmp_path))


def test_weights_that_are_not_finite(start: Path, tmp_path: Path) -> None:
    weights = weights_of(start)
    weights["1.bias"][3] = float("nan")
    save_file(weights, file := tmp_path / "weights.safetensors")
    task = Transfer(source="digits", start=str(file))
    with pytest.raises(ArgumentError, match=r"the weights in .* must be finite, but 1\.bias is not"):
        fresh_model(config(task))


def test_a_run_with_an_average(start: Path, tmp_path: Path) -> None:
    lines = (start / "run.jsonl").read_text().splitlines()
    first: dict[str, Any] = json.loads(lines[0])
    first["recipe"]["ema"] = 0.9
    (tmp_path / "run.jsonl").write_text("\n".join([json.dumps(first), *lines[1:]]) + "\n")
    with pytest.raises(ArgumentError, match=r"without a moving average of the weights, but .* has ema=0\.9"):
        Transfer(source="digits", start=str(tmp_path))


def test_another_model(tuning: Transfer) -> None:
    with pytest.raises(ArgumentError, match="give --model the model that was pre-trained"):
        fresh_model(config(tuning, model="convnet"))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"source": "keypoints"}, "source must be one of 'cifar10'"),
        ({"source": "transfer"}, "source must be one of"),
        ({"side": "both"}, "side must be one of 'finetune', 'pretrain', 'scratch'"),
        ({"first": 1}, "first must be an integer >= 2, but is 1"),
        ({"first": 9}, "first must be at most 8, .*but is 9"),
        ({"side": "scratch", "start": "runs/x"}, "start must be the path of a run for side=finetune"),
        ({"start": 3}, "start must be the path of a run for side=finetune"),
        ({"weights": "abc"}, "weights must be None without start"),
        ({"noise": 1.0}, "noise must be in"),
    ],
)
def test_bad_fields(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ArgumentError, match=message):
        Transfer(**fields)


def test_noise_among_classes_that_do_not_look_alike(cifar10_files: Path) -> None:
    task = Transfer(side="scratch", noise=0.5, noise_kind="asymmetric")
    with pytest.raises(ArgumentError, match="no two classes of this side of cifar10 look alike"):
        task.datasets(cifar10_files)
    assert len(Transfer(side="scratch").datasets(cifar10_files)["train"]) == 25


@pytest.mark.data
def test_real_cifar10(real: Callable[[str], Path]) -> None:
    root = real("cifar-10-batches-py")
    for side in ("pretrain", "scratch"):
        parts = Transfer(side=side).datasets(root)
        assert torch.bincount(parts["train"].targets).tolist() == [5000] * 5
        assert torch.bincount(parts["test"].targets).tolist() == [1000] * 5


def test_the_weights_are_those_of_the_last_checkpoint(tuning: Transfer, tmp_path: Path) -> None:
    """A run keeps two checkpoints."""
    made = replace(config(Transfer(source="digits", side="pretrain"), "plain"), checkpoint_every=2)
    trained(tmp_path, replace(made, budget=Budget(limit=4)))
    folders = sorted(path.name for path in tmp_path.glob("checkpoints/step-*"))
    assert folders[-1] == "step-000000004"
    last = load_file(tmp_path / "checkpoints" / folders[-1] / "weights.safetensors")
    state = fresh_model(config(Transfer(source="digits", start=str(tmp_path)))).state_dict()
    assert torch.equal(state["1.weight"], last["1.weight"])
