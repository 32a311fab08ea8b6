"""CIFAR-10 with few images, labels of people, several widths, and large batches."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from lowland.core.errors import ArgumentError, DataError
from lowland.lab import names
from lowland.lab.budget import Budget
from lowland.lab.config import RunConfig
from lowland.lab.data.images import subset
from lowland.lab.tasks.cifar import Cifar10, VitLargeBatch
from lowland.lab.tasks.digits import Digits
from lowland.lab.training.run import train
from lowland.testing import check_task


@pytest.fixture
def human(cifar10_files: Path) -> Path:
    """Labels of people for the 50 made images: the worst of 10, each moved by the number of its set."""
    clean = np.arange(50, dtype=np.uint8) % 10
    sets = {"worse_label": 1, "aggre_label": 2, "random_label1": 3, "random_label2": 4, "random_label3": 5}
    (cifar10_files / "cifar_n").mkdir()
    moved = {name: (clean + by) % 10 for name, by in sets.items()}
    np.savez(cifar10_files / "cifar_n" / "cifar10n.npz", clean_label=clean, **moved)
    return cifar10_files


@pytest.mark.parametrize(
    ("labels", "by"), [("worst", 1), ("aggregate", 2), ("random1", 3), ("random2", 4), ("random3", 5)]
)
def test_labels_of_people(human: Path, labels: str, by: int) -> None:
    task = names.make(f"cifar10:labels={labels}")
    parts = task.datasets(human)
    assert parts["train"].targets.tolist() == [(n + by) % 10 for n in range(50)]
    assert parts["test"].targets.tolist() == list(range(10))
    assert isinstance(task, Cifar10)
    assert task.images(human).clean_targets.tolist() == [n % 10 for n in range(50)]
    assert names.spell(task) == f"cifar10:labels={labels}"
    assert names.make("cifar10").datasets(human)["train"].targets.tolist() == [n % 10 for n in range(50)]


def test_labels_of_people_and_few_images(human: Path) -> None:
    parts = names.make("cifar10:labels=worst,examples=20").datasets(human)
    shown = parts["train"].inputs[:, 1, 0, 0]  # green is the position within a file, the class
    assert parts["train"].targets.tolist() == ((shown.long() + 1) % 10).tolist()
    assert torch.bincount(parts["train"].targets, minlength=10).tolist() == [2] * 10


def test_other_labels_are_refused(human: Path) -> None:
    file = human / "cifar_n" / "cifar10n.npz"
    task = names.make("cifar10:labels=worst")
    with pytest.raises(ArgumentError, match="labels must be clean where noise is added, but are worst"):
        names.make("cifar10:labels=worst,noise=0.2")
    with pytest.raises(ArgumentError, match="labels must be one of"):
        names.make("cifar10:labels=best")
    good = dict(np.load(file))
    for wrong, message in [
        (good | {"clean_label": (good["clean_label"] + 1) % 10}, "belong to other images"),
        (good | {"worse_label": good["worse_label"][:40]}, "must hold 'worse_label', 50 integers"),
        (good | {"worse_label": good["worse_label"].astype(float)}, "must hold 'worse_label', 50 integers"),
        (good | {"worse_label": good["worse_label"] + 5}, "must be classes"),
        ({k: v for k, v in good.items() if k != "worse_label"}, "must hold 'worse_label'"),
    ]:
        np.savez(file, **wrong)
        with pytest.raises(DataError, match=message):
            task.datasets(human)
    file.write_bytes(b"nothing")
    with pytest.raises(DataError, match="cannot read"):
        task.datasets(human)
    file.unlink()
    with pytest.raises(DataError, match=r"has no cifar_n/cifar10n\.npz; get CIFAR-10_human\.pt"):
        task.datasets(human)


@pytest.mark.data
def test_real_labels_of_people(real) -> None:  # type: ignore[no-untyped-def]
    root = real("cifar-10-batches-py")
    root = root if (root / "cifar_n").exists() else root.parent
    if not (root / "cifar_n" / "cifar10n.npz").exists():
        pytest.skip("no labels of people")
    for labels, wrong in [("worst", 40.21), ("aggregate", 9.01), ("random1", 17.23), ("random2", 18.12)]:
        images = names.make(f"cifar10:labels={labels}").images(root)  # type: ignore[attr-defined]
        share = 100 * (images.train_targets != images.clean_targets).double().mean()
        assert float(share) == pytest.approx(wrong, abs=0.005)


def test_few_images_are_balanced_and_nested() -> None:
    images = Digits().images(None)
    small, large = subset(images, 100), subset(images, 305)
    assert torch.bincount(small.clean_targets).tolist() == [10] * 10
    assert sorted(set(torch.bincount(large.clean_targets).tolist())) == [30, 31]

    def rows(part: torch.Tensor) -> set[bytes]:
        return {row.numpy().tobytes() for row in part}

    assert rows(small.train_inputs) < rows(large.train_inputs) < rows(images.train_inputs)
    assert torch.equal(small.test_inputs, images.test_inputs)
    everything = subset(images, len(images.clean_targets))
    assert torch.equal(everything.train_inputs, images.train_inputs)
    assert len(names.make("digits:examples=100,noise=0.5").datasets(None)["train"]) == 100


def test_how_many_images() -> None:
    with pytest.raises(ArgumentError, match="examples must be an integer >= 10, but is 9"):
        names.make("digits:examples=9")
    with pytest.raises(ArgumentError, match="examples must be <= 1297, the training images of digits, but is 2000"):
        names.make("digits:examples=2000").datasets(None)


def test_a_width_trains_as_the_network_it_is_made_from(cifar10_files: Path) -> None:
    task = Cifar10()
    assert set(task.models) >= {"resnet20-w4", "resnet20-w8", "resnet20-w32", "vit-tiny"}
    assert task.recipe("resnet20-w8") == task.recipe("resnet20")
    assert task.recipe("vit-tiny").optimizer == "adamw"


def test_large_batches(cifar10_files: Path, tmp_path: Path) -> None:
    recipe = VitLargeBatch().recipe("vit-tiny")
    assert (recipe.optimizer, recipe.batch_size, recipe.accumulate) == ("lamb", 4096, 32)
    ends = []
    for accumulate in (1, 4):
        own = recipe.replace(batch_size=20, accumulate=accumulate, precision="fp32", epochs=1)
        config = RunConfig(
            task=VitLargeBatch(), model="vit-tiny", method="looksam:geometry=layerwise", seed=0, recipe=own,
            budget=Budget(limit=3), data=cifar10_files, device="cpu",
        )  # fmt: skip
        ends.append(train(config, tmp_path / str(accumulate)))
    assert ends[0]["test"]["loss"] == pytest.approx(ends[1]["test"]["loss"], rel=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("text", ["cifar10:labels=worst,examples=40", "vit-large-batch"])
def test_the_checks_of_tasks(text: str, human: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    task = names.make(text)
    recipe = replace(task.recipe("vit-tiny"), batch_size=8, accumulate=1, epochs=1)
    monkeypatch.setattr(type(task), "recipe", lambda self, model: recipe)
    assert check_task(task, model="vit-tiny", root=human) == []
