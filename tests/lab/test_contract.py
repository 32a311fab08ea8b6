"""What a user's task returns is checked where it is used first, and told in the words of the task."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from lowland.core.errors import ArgumentError
from lowland.lab import names
from lowland.lab.metric import Metric
from lowland.lab.tasks.classification import ACCURACY
from lowland.lab.training.run import train
from lowland.testing import check_task

TASK = """
from dataclasses import dataclass
from lowland.lab import Recipe
from lowland.lab.tasks.digits import Digits

@dataclass(frozen=True, kw_only=True)
class Pair(Digits):
    def datasets(self, root):
        return tuple(super().datasets(root).values())

@dataclass(frozen=True, kw_only=True)
class Fields(Digits):
    def recipe(self, model):
        return {"lr": 0.1}

@dataclass(frozen=True, kw_only=True)
class Twice(Digits):
    metrics = (*Digits.metrics, *Digits.metrics)
"""


@pytest.fixture
def task_file(tmp_path: Path) -> Path:
    (tmp_path / "wrong.py").write_text(TASK)
    return tmp_path / "wrong.py"


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("Pair", r"datasets\(\) of Pair must return a dictionary of the parts train and test, but returned a tuple"),
        ("Twice", "metrics of Twice must have different names, but two are 'accuracy'; rename one"),
    ],
)
def test_a_run_says_what_a_task_returns_wrongly(
    config: Any, task_file: Path, tmp_path: Path, name: str, message: str
) -> None:
    with pytest.raises(ArgumentError, match=message):
        train(replace(config, task=names.make(f"{task_file}:{name}")), tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("command", [["tasks"], ["train", "--out", "runs", "--task"]])
@pytest.mark.parametrize("name", ["Pair", "Fields"])
def test_so_do_the_commands(
    task_file: Path,
    command: list[str],
    name: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    from lowland.cli.main import main

    monkeypatch.chdir(task_file.parent)
    code, told = main([*command, f"{task_file}:{name}"]), capsys.readouterr()
    assert code == (0 if command == ["tasks"] and name == "Pair" else 2)  # then the sizes are unknown
    assert f"of {name} must return a" in " ".join((told.out + told.err).split())


def test_check_task_says_so(task_file: Path) -> None:
    with pytest.raises(AssertionError, match=r"datasets\(\) of Pair must return a dictionary"):
        check_task(names.make(f"{task_file}:Pair"))


def test_a_metric_of_one_value_for_each_example() -> None:
    metric = replace(ACCURACY, update=lambda logits, batch: (logits.argmax(1) == batch[1]).float())
    count = metric.begin()
    with pytest.raises(
        ArgumentError, match=r"must return two totals, of which the first .* but returned 3; return sums"
    ):
        count.add(torch.zeros(3, 10), (None, torch.zeros(3)))
    own = Metric(name="hits", update=lambda p, b: p, compute=lambda totals: float(totals.sum())).begin()
    own.add(torch.ones(3), None)
    with pytest.raises(ArgumentError, match=r"must return as many totals for every batch, but returned 2 after 3"):
        own.add(torch.ones(2), None)


class Narrow(nn.Module):
    """A network in bf16."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Flatten(), nn.Linear(64, 10)).bfloat16()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.net(x.bfloat16()).float()


def test_a_model_in_bf16_ends_without_a_sharpness(config: Any, tmp_path: Path) -> None:
    end = train(replace(config, model=Narrow), tmp_path / "run")
    assert end["m_sharpness"] is None
    assert end["step"] == 12


def test_an_undefined_metric_uses_up_patience_but_is_no_divergence(config: Any, tmp_path: Path) -> None:
    nothing = Metric(name="nothing", update=lambda p, b: torch.zeros(2))
    task = type("Undefined", (type(config.task),), {"metrics": (nothing,)})()
    config = replace(config, task=task, validation=0.25, patience=2, budget=replace(config.budget, limit=20))
    end = train(config, tmp_path / "run")
    assert (end["epochs"], end["diverged"], end.get("best")) == (2, False, None)
    assert end["test"]["nothing"] is None  # what JSON has for NaN


SHAPES = """
import torch
from torch import nn

class Few(nn.Sequential):
    def __init__(self): super().__init__(nn.Flatten(), nn.Linear(64, 5))

class Grid(nn.Sequential):
    def __init__(self): super().__init__(nn.Flatten(), nn.Linear(64, 10), nn.Unflatten(1, (10, 1)))

class Normed(nn.Sequential):
    def __init__(self): super().__init__(nn.Flatten(), nn.Linear(64, 8), nn.BatchNorm1d(8), nn.Linear(8, 10))

class Flat(nn.Sequential):
    def __init__(self): super().__init__(nn.Linear(10, 1), nn.Flatten(0))

class Column(nn.Sequential):
    def __init__(self): super().__init__(nn.Linear(10, 1))

class Two(nn.Sequential):
    def __init__(self): super().__init__(nn.Linear(10, 2))
"""


@pytest.mark.parametrize(
    ("task", "model", "options", "words"),
    [
        ("digits", "Few", [], "model must return logits of shape (B, 10), one for each class, but returned shape"),
        (
            "digits",
            "Grid",
            [],
            "logits of shape (B, 10), one for each class, but returned shape (64, 10, 1)",
        ),
        ("digits", "Normed", ["--batch-size", "1"], "every pass must have two examples or more"),
        ("digits", "Normed", ["--batch-size", "2", "--accumulate", "2"], "take a larger batch_size, a smaller acc"),
        ("diabetes", "Two", [], "must return one number for each of 32 examples, shape (32, 1) or (32,), but returned"),
        ("diabetes", "mlp", ["--label-smoothing", "0.1"], "label_smoothing must be 0 for Diabetes"),
        ("keypoints", "heatmap", ["--label-smoothing", "0.1"], "label_smoothing must be 0 for Keypoints"),
    ],
)
def test_outputs_of_another_shape(
    tmp_path: Path,
    task: str,
    model: str,
    options: list[str],
    words: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    from lowland.cli.main import main

    monkeypatch.chdir(tmp_path)
    Path("nets.py").write_text(SHAPES)
    given = names.make(task).models[0] if model in ("mlp", "heatmap") else f"nets.py:{model}"
    assert main(["train", "--task", task, "--model", given, "--limit", "2", "--out", "runs", *options]) == 2
    assert words in " ".join(capsys.readouterr().err.split())


def test_one_number_with_and_without_a_dimension(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("nets.py").write_text(SHAPES)
    task = names.make("diabetes")
    batch = (torch.randn(7, 10), torch.randn(7), torch.ones(7))
    column, _ = names.model_maker(task, "nets.py:Column")
    flat, _ = names.model_maker(task, "nets.py:Flat")
    net, other = column(), flat()
    other.load_state_dict(net.state_dict())
    assert torch.equal(task.loss(net, batch), task.loss(other, batch))
    assert task.loss(net, batch).shape == (7,)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("digits:noise=0.5,noise_seed=abc", "noise_seed must be an integer >= 0, but is 'abc'"),
        ("digits:noise_seed=1.5", r"noise_seed must be an integer >= 0, but is 1\.5"),
        ("qat:bits=4.0", r"bits must be 4 or 8, but is 4\.0"),
    ],
)
def test_fields_of_another_kind(text: str, message: str) -> None:
    with pytest.raises(ArgumentError, match=message):
        names.make(text)
