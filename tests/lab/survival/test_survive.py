"""Survival of a small run: values by hand, resumption, and refusals."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import pytest
import torch
from torch import nn

from lowland.core.errors import ArgumentError, UnknownNameError
from lowland.executors.norm_stats import refresh_stats
from lowland.lab import Survival, Trained, load_run, survive
from lowland.lab.budget import Budget
from lowland.lab.config import RunConfig
from lowland.lab.data.wrapped import dataset
from lowland.lab.recipe import Recipe
from lowland.lab.survival.second import Permuted, second_of, trained_further
from lowland.lab.survival.weights import add_noise_, deployed, quantize_
from lowland.lab.task import Task
from lowland.lab.tasks.digits import Digits
from lowland.lab.training.evaluate import evaluate, fingerprint
from lowland.lab.training.run import train
from lowland.runs.measures import MEASURES_FILE, Measure
from lowland.runs.reader import read

CPU = torch.device("cpu")


@pytest.fixture
def trained(config: RunConfig, tmp_path: Path) -> Trained:
    train(replace(config, model="convnet", validation=0.2), tmp_path / "run")
    return load_run(tmp_path / "run", task=config.task, device="cpu")


def values(found: Sequence[Measure], **settings: object) -> dict[str, float | None]:
    """The values by name of the measures with these settings."""
    return {m.name: m.value for m in found if settings.items() <= m.settings.items()}


def by_hand(trained: Trained, model: nn.Module, part: str = "test") -> dict[str, float]:
    return evaluate(trained.task, model, trained.loader.evaluation(part=part), device=CPU)


def test_the_values_are_those_of_an_evaluation_by_hand(trained: Trained) -> None:
    before = fingerprint(trained.model)
    found = survive(trained, Survival(bits=(8, 2), noise=(0.3,), draws=3, seed=5))
    assert fingerprint(trained.model) == before
    assert trained.record.end is not None
    assert {m.group for m in found} == {"survival"}
    assert {m.weights for m in found} == {trained.record.end.weights_sha256}
    unchanged = {part: by_hand(trained, trained.model, part) for part in ("test", "validation")}
    for part, figures in unchanged.items():
        assert {name: values(found)[f"unchanged-{part}-{name}"] for name in figures} == figures
        for bits in (8, 2):
            model = deployed(trained.model)
            quantize_(model, bits, "channel")
            after, shown = by_hand(trained, model, part), values(found, bits=bits, granularity="channel")
            for name, sign in (("loss", -1), ("accuracy", 1)):
                assert shown[f"quantized-{part}-{name}"] == after[name]
                assert shown[f"quantized-{part}-{name}-lost"] == sign * (figures[name] - after[name])
        draws = []
        for draw in range(3):
            model = deployed(trained.model)
            add_noise_(model, 0.3, "filter", 5, draw)
            draws.append(by_hand(trained, model, part)["loss"])
        (noisy,) = [m for m in found if m.name == f"noisy-{part}-loss"]
        assert noisy.value == pytest.approx(fmean(draws), rel=1e-12)
        assert noisy.error == pytest.approx(stdev(draws) / 3**0.5, rel=1e-12)
        (lost,) = [m for m in found if m.name == f"noisy-{part}-loss-lost"]
        assert lost.error == pytest.approx(noisy.error, rel=1e-9)
        assert noisy.settings == {
            "noise": 0.3, "norm": "filter", "draws": 3, "seed": 5, "examples": 20 if part == "test" else 10,
            "refresh_stats": 0,
        }  # fmt: skip
    shown = [m.title for m in found if m.title]
    assert shown == [
        "accuracy, unchanged",
        "accuracy lost, 8 bits",
        "accuracy lost, 2 bits",
        "accuracy lost, noise 0.3",
    ]


def test_values_are_kept_until_they_are_wanted_again(trained: Trained) -> None:
    labels: list[str] = []

    def note(done: int, total: int, label: str) -> None:
        labels.append(f"{done}/{total} {label}")

    wanted = Survival(bits=(4,), noise=())
    first = survive(trained, wanted, progress=note)
    assert labels == ["0/2 unchanged", "1/2 4 bits"]
    assert survive(trained, wanted, progress=note) == first
    assert len(labels) == 2
    more = survive(trained, replace(wanted, bits=(4, 3)), progress=note)
    assert labels[2:] == ["0/1 3 bits"]
    assert all(m in more for m in first)
    survive(trained, replace(wanted, granularity="tensor"), progress=note)
    survive(trained, replace(wanted, examples=7), progress=note)
    assert labels[3:] == ["0/1 4 bits", "0/2 unchanged", "1/2 4 bits"]
    survive(trained, wanted, again=True, progress=note)
    assert labels[6:] == ["0/2 unchanged", "1/2 4 bits"]
    assert all(m in read(trained.record.path).measures for m in more)


def test_an_interrupted_measurement_goes_on(trained: Trained) -> None:
    before = fingerprint(trained.model)

    def stop(done: int, total: int, label: str) -> None:
        if done == 2:
            raise KeyboardInterrupt

    wanted = Survival(bits=(8, 4, 3), noise=())
    with pytest.raises(KeyboardInterrupt):
        survive(trained, wanted, progress=stop)
    assert fingerprint(trained.model) == before
    file = trained.record.path.parent / MEASURES_FILE
    lines = file.read_text().splitlines(keepends=True)
    file.write_text("".join(lines)[:-30])  # as if killed while the last line was written
    left: list[str] = []
    found = survive(trained, wanted, progress=lambda done, total, label: left.append(label))
    assert left == ["8 bits", "4 bits", "3 bits"]
    assert len(found) == 4 + 3 * 8
    json.loads(file.read_text().splitlines()[-1])


def test_statistics_are_kept_or_recomputed(trained: Trained) -> None:
    kept = survive(trained, Survival(bits=(2,), noise=()))
    fresh = survive(trained, Survival(bits=(2,), noise=(), refresh_stats=3))
    model = deployed(trained.model)
    quantize_(model, 2, "channel")
    assert values(kept, bits=2)["quantized-test-loss"] == by_hand(trained, model)["loss"]
    batches = list(trained.loader.batches(0))[:3]
    refresh_stats(model, batches)
    assert values(fresh, bits=2)["quantized-test-loss"] == by_hand(trained, model)["loss"]
    plain = deployed(trained.model)
    refresh_stats(plain, batches)
    assert values(fresh)["unchanged-test-loss"] == by_hand(trained, plain)["loss"]


def test_statistics_are_recomputed_over_more_batches_than_an_epoch_has(trained: Trained) -> None:
    batches = [*trained.loader.batches(0), next(trained.loader.batches(1))]
    fresh = survive(trained, Survival(bits=(2,), noise=(), refresh_stats=len(batches)))
    model = deployed(trained.model)
    refresh_stats(model, batches)
    assert values(fresh)["unchanged-test-loss"] == by_hand(trained, model)["loss"]


def in_batches_of_16(config: RunConfig) -> Task:
    """The run's task, 51 images, with a recipe of smaller batches."""
    rows: Any = type(config.task)

    @dataclass(frozen=True, kw_only=True)
    class Small(rows):
        def settings(self, model: str) -> dict[str, Any]:
            return {"batch_size": 16}

    return Small()  # type: ignore[no-any-return]


def test_forgetting_is_measured_after_a_training_that_learns(config: RunConfig, tmp_path: Path) -> None:
    task = in_batches_of_16(config)
    own = replace(config, task=task, model="mlp", budget=replace(config.budget, limit=200))
    train(own, tmp_path / "run")
    trained = load_run(tmp_path / "run", task=task, device="cpu")
    state = torch.get_rng_state()
    found = survive(trained, Survival(bits=(), noise=(), forget="permuted", forget_steps=40, forget_lr=0.05))
    assert torch.equal(torch.get_rng_state(), state)
    assert trained.record.end is not None
    assert fingerprint(trained.model) == trained.record.end.weights_sha256
    second = second_of(trained, Survival(forget="permuted", forget_steps=40, forget_lr=0.05))
    other = trained_further(second)
    assert not other.training
    after, now = by_hand(trained, other), values(found, second="permuted", steps=40, lr=0.05, seed=0)
    assert now["forgotten-test-accuracy"] == after["accuracy"]
    before = by_hand(trained, trained.model)
    assert after["accuracy"] < before["accuracy"]
    assert now["forgotten-test-accuracy-lost"] == before["accuracy"] - after["accuracy"]
    assert now["forgotten-test-loss-lost"] == after["loss"] - before["loss"]
    learned = evaluate(second.task, other, second.loader.evaluation(), device=CPU)
    assert now["second-test-accuracy"] == learned["accuracy"]
    untrained = evaluate(second.task, trained.model, second.loader.evaluation(), device=CPU)
    assert learned["loss"] < untrained["loss"]  # the second task was learned


def test_a_second_training_that_diverges_forgets_nothing_that_could_be_measured(
    config: RunConfig, tmp_path: Path
) -> None:
    task = in_batches_of_16(config)
    train(replace(config, task=task, model="mlp"), tmp_path / "run")
    trained = load_run(tmp_path / "run", task=task, device="cpu")
    found = survive(trained, Survival(bits=(), noise=(), forget="permuted", forget_steps=9, forget_lr=1e30))
    forgotten = [m for m in found if m.name.startswith(("forgotten", "second"))]
    assert len(forgotten) > 2
    assert all(m.value is None for m in forgotten)


def test_the_pixels_of_all_images_are_permuted_alike(trained: Trained) -> None:
    data = trained.loader.parts["test"]
    mixed = Permuted(data, 3)
    index = torch.tensor([4, 0, 7])
    (inputs, targets, place), (found, other, same) = data.batch(index, None), mixed.batch(index, None)
    assert len(mixed) == len(data)
    assert torch.equal(targets, other)
    assert torch.equal(place, same)
    for image, moved in zip(inputs, found, strict=True):
        assert torch.equal(image.flatten()[mixed.order], moved.flatten())
        assert not torch.equal(image, moved)
    assert torch.equal(mixed.order.sort().values, torch.arange(64))
    assert not torch.equal(mixed.order, Permuted(data, 4).order)
    train_part = Permuted(trained.loader.parts["train"], 3)
    assert torch.equal(train_part.order, mixed.order)


def test_a_second_task_must_fit(trained: Trained, config: RunConfig) -> None:
    for text, kind, message in (
        ("digits", ArgumentError, r"digits has inputs \(1, 8, 8\) and 10 classes instead of .* and 3 classes"),
        ("digit", UnknownNameError, "did you mean 'digits'"),
    ):
        with pytest.raises(kind, match=message):
            survive(trained, Survival(forget=text))
    assert not (trained.record.path.parent / MEASURES_FILE).exists()  # refused before anything was measured
    with pytest.raises(ArgumentError, match="batch_size must be <= 41"):  # the task's recipe has batches of 128
        survive(trained, Survival(forget="permuted"))


def test_a_second_task_with_other_labels(config: RunConfig, tmp_path: Path) -> None:
    own = replace(config, task=Digits(), recipe=Digits().recipe("mlp"))
    train(own, tmp_path / "run")
    trained = load_run(tmp_path / "run", device="cpu")
    found = survive(trained, Survival(bits=(), noise=(), forget="digits:noise=0.5", forget_steps=3))
    (title,) = [m.title for m in found if m.title.endswith("on digits:noise=0.5")]
    assert title == "accuracy on digits:noise=0.5"
    assert "seed" not in next(m for m in found if m.name == "second-test-loss").settings


class Texts(Digits):
    """Digits whose images are rows of pixels."""

    def datasets(self, root: Path | None) -> dict[str, torch.utils.data.Dataset[object]]:
        return {
            name: torch.utils.data.TensorDataset(part.inputs.flatten(1).float(), part.targets)
            for name, part in super().datasets(root).items()
        }


def test_a_task_without_metrics_loses_in_its_loss(tmp_path: Path) -> None:
    class Line(Task):
        """Two numbers and their sum; the mean loss of a batch."""

        def datasets(self, root: Path | None) -> dict[str, Any]:
            inputs = torch.randn(60, 2, generator=torch.Generator().manual_seed(0))
            data = torch.utils.data.TensorDataset(inputs, inputs.sum(1, keepdim=True))
            return {"train": data, "test": data}

        def model(self, name: str) -> nn.Module:
            return nn.Sequential(nn.Linear(2, 4), nn.Dropout(0.1), nn.Linear(4, 1))

        def loss(self, model: nn.Module, batch: Any) -> torch.Tensor:
            return nn.functional.mse_loss(model(batch[0]), batch[1])

    task = Line()
    recipe = Recipe(lr=0.05, batch_size=20)
    run = RunConfig(
        task=task, model="default", method="plain", seed=0, recipe=recipe, budget=Budget(limit=9), device="cpu"
    )
    train(run, tmp_path / "run")
    trained = load_run(tmp_path / "run", task=task, device="cpu")
    found = survive(trained, Survival(bits=(2,), noise=(0.1,), draws=1))
    shown = {m.title: m for m in found if m.title}
    assert list(shown) == ["loss, unchanged", "loss lost, 2 bits", "loss lost, noise 0.1"]
    now = values(found)
    assert now["quantized-test-loss-lost"] == now["quantized-test-loss"] - now["unchanged-test-loss"]  # type: ignore
    assert shown["loss lost, noise 0.1"].error is None  # of a single draw
    assert "These layers have 100 % of all parameters" not in shown["loss lost, 2 bits"].help
    assert f"These layers have {100 * 12 / 17:.3g} % of all parameters." in shown["loss lost, 2 bits"].help
    with pytest.raises(ArgumentError, match="permuted needs batches that begin with images"):
        survive(trained, Survival(forget="permuted"))


def test_refusals(trained: Trained, config: RunConfig, tmp_path: Path) -> None:
    for field, value, message in (
        ("bits", (1,), "bits must be an integer from 2 to 8"),
        ("noise", (0.0,), "noise must be > 0"),
        ("noise", (float("nan"),), "noise must be a number >= 0"),
        ("granularity", "row", "granularity must be one of"),
        ("norm", "layer", "norm must be one of"),
        ("draws", 0, "draws must be an integer >= 1"),
        ("forget_steps", 0, "forget_steps must be an integer >= 1"),
        ("forget_lr", -1.0, "forget_lr must be a number >= 0"),
        ("examples", 0, "examples must be an integer >= 1"),
        ("refresh_stats", -1, "refresh_stats must be an integer >= 0"),
    ):
        with pytest.raises(ArgumentError, match=message):
            Survival(**{field: value})  # type: ignore[arg-type]
    train(replace(config, model="mlp"), tmp_path / "mlp")
    without = load_run(tmp_path / "mlp", task=config.task, device="cpu")
    with pytest.raises(ArgumentError, match="refresh_stats needs a model with running statistics, but mlp has none"):
        survive(without, Survival(refresh_stats=2))
    end = replace(without.record.end, diverged=True)  # type: ignore[type-var]
    with pytest.raises(ArgumentError, match=r"must have trained models, but .* diverged"):
        survive(replace(without, record=replace(without.record, end=end)))


@pytest.mark.parametrize("fields", [{"bits": 4}, {"noise": 0.1}, {"noise": None}])
def test_levels_are_tuples(fields: dict[str, Any]) -> None:
    with pytest.raises(
        ArgumentError, match=r"must be a tuple, but is .*; write (bits|noise)=\(\), which leaves it out"
    ):
        Survival(**fields)


def test_rows_of_pixels_are_not_permuted() -> None:
    parts: dict[str, torch.utils.data.Dataset[object]] = Texts().datasets(None)
    with pytest.raises(ArgumentError, match="permuted needs batches that begin with images"):
        Permuted(dataset("test", parts["test"]), 0)
