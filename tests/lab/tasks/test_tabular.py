"""A table of the user's own: features and targets, the contents of the file in the identity, and refusals."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from ranks import on_ranks
from short_runs import METHODS, assert_resumes, config, trained

from lowland.cli.main import main
from lowland.core.errors import ArgumentError, DataError, UnknownNameError
from lowland.lab import names
from lowland.lab.tasks.tabular import Tabular
from lowland.lab.training.prepare import line_of, loader_of
from lowland.methods import make
from lowland.testing import check_task

ROWS = 60


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """Houses: the price is 10 times the size, plus 5 in town; a third column has missing numbers."""
    draw = torch.Generator().manual_seed(0)
    sizes = torch.rand(ROWS, generator=draw).tolist()
    lines = ["id,size,place,rooms,price,kind"]
    for i, size in enumerate(sizes):
        place, rooms = ("town", "country")[i % 2], "" if i % 5 == 0 else str(i % 4)
        kind = "large" if size > 0.5 else "small"
        lines.append(f"house {i} of {i},{size:.6f},{place},{rooms},{10 * size + 5 * (i % 2 == 0):.6f},{kind}")
    path = tmp_path / "houses.csv"
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def task_of(file: Path, **fields: Any) -> Tabular:
    given = {"target": "price", "kind": "regression", "ignore": ("id", "kind"), "width": 8}
    return Tabular(file=str(file), **{**given, **fields})


def identity(task: Tabular) -> str:
    made = config(task)
    return str(line_of(made, loader_of(made), make("sam"))["run"])


def test_regression(file: Path) -> None:
    task = task_of(file)
    assert check_task(task) == []
    assert [metric.name for metric in task.metrics] == ["r2", "rmse"]
    assert (task.features, task.outputs) == (5, 1)  # size, country, town, rooms, rooms is missing
    parts = task.datasets(None)
    assert (len(parts["train"]), len(parts["test"])) == (48, 12)
    train = parts["train"]
    assert float(train.inputs[:, 0].mean()) == pytest.approx(0, abs=1e-6)
    assert float(train.targets.std(correction=0)) == pytest.approx(1)
    # prices are a linear function of size and place, also after both are standardized
    features = torch.cat([train.inputs[:, :2], torch.ones(48, 1)], 1)
    solution = torch.linalg.lstsq(features, train.targets.unsqueeze(1)).solution
    others = torch.cat([parts["test"].inputs[:, :2], torch.ones(12, 1)], 1)
    torch.testing.assert_close((others @ solution).squeeze(1), parts["test"].targets, rtol=1e-4, atol=1e-4)


def test_classification(file: Path) -> None:
    task = task_of(file, target="kind", kind="classification", ignore="id")
    assert check_task(task) == []
    assert [metric.name for metric in task.metrics] == ["accuracy"]
    assert (task.outputs, task._table.classes) == (2, ("large", "small"))
    parts = task.datasets(None)
    every = [line.rpartition(",")[2] for line in file.read_text().splitlines()[1:]]
    counts = torch.bincount(torch.cat([parts["train"].targets, parts["test"].targets]))
    assert counts.tolist() == [every.count("large"), every.count("small")]
    assert torch.bincount(parts["test"].targets).tolist() == [round(0.2 * int(n)) for n in counts]
    batch = parts["train"].batch(torch.arange(4), None)
    smooth = task.training_loss(task.model("mlp"), batch, task.recipe("mlp").replace(label_smoothing=0.1))
    assert smooth.shape == (4,)


def test_the_losses_by_hand(file: Path) -> None:
    batch = (torch.zeros(2, 5), torch.tensor([1.0, -2.0]), torch.ones(2))
    zero = torch.nn.Linear(5, 1)
    torch.nn.init.zeros_(zero.bias)
    assert task_of(file).loss(zero, batch).tolist() == [1.0, 4.0]
    equal = torch.nn.Linear(5, 2)
    torch.nn.init.zeros_(equal.bias)
    loss = task_of(file, target="kind", kind="classification").loss(equal, (batch[0], torch.tensor([0, 1])))
    torch.testing.assert_close(loss, torch.full((2,), math.log(2)))


def test_the_text(file: Path) -> None:
    task = task_of(file)
    text = names.spell(task)
    assert f"contents={task.contents}" in text
    assert names.make(text) == task
    assert task_of(file, ignore="id").ignore == ("id",)
    odd = file.with_name("1, 2.csv")
    odd.write_bytes(file.read_bytes())
    assert names.make(names.spell(task_of(odd))) == task_of(odd)


def test_the_identity_has_the_contents(file: Path) -> None:
    before = task_of(file)
    first = identity(before)
    assert identity(task_of(file)) == first
    with file.open("a") as rows:
        rows.write("new,0.5,town,3,5.0,small\n")
    after = task_of(file)
    assert identity(after) != first
    assert len(after.datasets(None)["train"]) == 49
    changed = replace(before, width=9)
    with pytest.raises(DataError, match=rf"must have the hash {before.contents}, but has {after.contents}"):
        changed.datasets(None)


def test_the_choice_of_test_rows(file: Path) -> None:
    one, same, other = (task_of(file, split_seed=seed).datasets(None)["test"].inputs for seed in (0, 0, 1))
    assert torch.equal(one, same)
    assert not torch.equal(one, other)
    assert len(task_of(file, test=0.5).datasets(None)["test"]) == 30


def test_an_external_model_gets_the_sizes(file: Path, tmp_path: Path) -> None:
    (tmp_path / "nets.py").write_text(
        "from torch import nn\ndef net(features, outputs):\n    return nn.Linear(features, outputs)\n"
    )
    maker, _ = names.model_maker(task_of(file), f"{tmp_path}/nets.py:net")
    assert maker()(torch.zeros(2, 5)).shape == (2, 1)


@pytest.mark.parametrize("method", METHODS)
def test_methods_train_it(file: Path, tmp_path: Path, method: str) -> None:
    end = trained(tmp_path / "run", config(task_of(file), method))
    assert not end.get("diverged")
    assert end["test"]["rmse"] > 0


def test_it_resumes(file: Path, tmp_path: Path) -> None:
    assert_resumes(tmp_path, config(task_of(file, target="kind", kind="classification"), "looksam:k=3"))


@pytest.mark.slow
def test_two_ranks_train_as_one_process_does(file: Path, tmp_path: Path) -> None:
    made = config(task_of(file), "sampa")
    alone = trained(tmp_path / "alone", made)
    ends = on_ranks(2, trained, tmp_path / "ranks", replace(made, mesh="data=2"))
    assert ends[0]["test"]["rmse"] == pytest.approx(alone["test"]["rmse"], rel=1e-5)


def test_the_command(file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The recipe's batches are a quarter of a small table."""
    small = tmp_path / "small.csv"
    small.write_text("".join(file.read_text().splitlines(keepends=True)[:21]))
    assert main(["tasks", f"tabular:file={small},target=price,kind=regression,ignore=id"]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    for text in ("16 for train, 4 for test", "metrics r2, rmse (lower is better)", "batch_size=4"):
        assert text in shown
    assert main(["tasks", "tabular"]) == 2
    assert "file must be given, but is None; write, for example, tabular:file=" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("fields", "kind", "message"),
    [
        ({"target": None}, ArgumentError, "target must be given, but is None"),
        ({"kind": None}, ArgumentError, "kind must be one of 'regression', 'classification', but is None"),
        ({"separator": ";"}, ArgumentError, "separator must be one of 'comma', 'semicolon', 'tab'"),
        ({"test": 1.0}, ArgumentError, r"test must be in \(0, 1\), but is 1.0"),
        ({"split_seed": -1}, ArgumentError, "split_seed must be an integer >= 0"),
        ({"width": 0}, ArgumentError, "width must be an integer >= 1"),
    ],
)
def test_bad_fields(file: Path, fields: dict[str, Any], kind: type[Exception], message: str) -> None:
    with pytest.raises(kind, match=message):
        task_of(file, **fields)


@pytest.mark.parametrize(
    ("fields", "kind", "message"),
    [
        ({"target": "prise"}, UnknownNameError, "unknown column 'prise': did you mean 'price'"),
        ({"ignore": ("idd",)}, UnknownNameError, "unknown column 'idd': did you mean 'id'"),
        ({"categorical": "room"}, UnknownNameError, "unknown column 'room': did you mean 'rooms'"),
        (
            {"target": "place"},
            DataError,
            "the target place must be a finite number in every row, but is 'town' in line 2",
        ),
        ({"target": "rooms"}, DataError, "the target rooms must be in every row, but is missing in line 2"),
        ({"kind": "classification"}, DataError, "must have 2 classes or more, .* 60 different values in 60 rows"),
        ({"test": 0.001}, DataError, "60 rows are too few for test=0.001"),
        ({"separator": "semicolon"}, UnknownNameError, "unknown column 'price'"),
    ],
)
def test_bad_contents(file: Path, fields: dict[str, Any], kind: type[Exception], message: str) -> None:
    with pytest.raises(kind, match=message):
        task_of(file, **fields).datasets(None)


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(ArgumentError, match=r"file must be a file that can be read, but .* cannot be"):
        task_of(tmp_path / "nothing.csv")


def written(tmp_path: Path, lines: list[str]) -> Path:
    path = tmp_path / "written.csv"
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


@pytest.mark.parametrize("text", ["-", "inf", "1,5", "1_000", "a"])
def test_a_text_between_numbers_is_refused_by_line(tmp_path: Path, text: str) -> None:
    """It would make a category of every number."""
    rows = [f"{i}.5;{i % 7}" for i in range(60)]
    rows[40] = f"{text};3"
    file = written(tmp_path, ["a;y", *rows])
    task = task_of(file, target="y", ignore=(), separator="semicolon")
    with pytest.raises(
        DataError, match=rf"column a must be numbers or texts, but 59 of its 60 .* line 42 has '{text}'"
    ):
        task.datasets(None)
    assert task_of(file, target="y", ignore=(), categorical="a", separator="semicolon").features > 10
    with pytest.raises(DataError, match=rf"target a must be a finite number in every row, but is '{text}' in line 42"):
        task_of(file, target="a", ignore=(), separator="semicolon").datasets(None)


@pytest.mark.parametrize("constant", ["0.3", "0.1", "1e300", "7"])
def test_equal_decimals_are_constant(tmp_path: Path, constant: str) -> None:
    """The standard deviation of equal doubles may be above 0 by rounding."""
    file = written(tmp_path, ["a,k,y", *(f"{i % 11},{constant},{i % 5}" for i in range(333))])
    assert task_of(file, target="y", ignore=()).features == 1
    with pytest.raises(DataError, match="the target k must differ between rows of the training part"):
        task_of(file, target="k", ignore=()).datasets(None)


def test_one_other_value_in_the_test_part(tmp_path: Path) -> None:
    """What does not vary in the training part is no feature, whatever the test part has."""
    rows, features = [f"{i % 11},0.3,{i % 5}" for i in range(40)], set()
    for place in range(40):
        changed = [*rows[:place], f"{place % 11},0.4,{place % 5}", *rows[place + 1 :]]
        task = task_of(written(tmp_path, ["a,k,y", *changed]), target="y", ignore=())
        assert float(task.datasets(None)["test"].inputs.abs().max()) < 10
        features.add(task.features)
    assert features == {1, 2}


def test_classes_that_are_too_small_for_a_test_part(tmp_path: Path) -> None:
    small = [f"{i},{i // 2}" for i in range(100)]
    file = written(tmp_path, ["a,y", *small, *(f"{i},large" for i in range(10))])
    with pytest.raises(DataError, match=r"about 0.2 of the 110 rows, but has 2, because most of the 51 classes"):
        task_of(file, target="y", kind="classification", ignore=()).datasets(None)
    file = written(tmp_path, ["a,y", *(f"{i},c{i % 30}" for i in range(90))])
    with pytest.raises(DataError, match=r"about 0.1 of the 90 rows, but has 0, because most of the 30 classes"):
        task_of(file, target="y", kind="classification", ignore=(), test=0.1).datasets(None)
    file = written(tmp_path, ["a,y", *(f"{i},{i % 2}" for i in range(100)), "1,rare"])
    common = {"target": "y", "kind": "classification", "ignore": ()}
    with pytest.raises(DataError, match=r"but all 1 rows of 'rare' are in the test part; .* a smaller test than 0.6"):
        task_of(file, test=0.6, **common).datasets(None)
    assert len(task_of(file, test=0.2, **common).datasets(None)["test"]) == 20
