"""A user's own task and method, from an empty folder: one command, one call, and nothing else's results."""

from __future__ import annotations

import html
import importlib.util
import re
import shlex
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from forked import python

import lowland
from lowland.testing import check_method, check_task

ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "examples"
METHODS = ["plain", "sam", "../mine/own_method.py:TwoRadii"]
SHORT = ["--epochs", "1", "--threads", "1"]


def loaded(name: str) -> Any:
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def compared(place: Path, task: str = "Text", methods: list[str] = METHODS, seeds: int = 2) -> str:
    command = ["compare", "--task", f"../mine/own_task.py:{task}", "--methods", *methods, "--seeds", str(seeds), *SHORT]
    done = python(["-m", "lowland", *command], place)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """An empty folder, beside one with the user's two files."""
    (tmp_path / "mine").mkdir()
    for name in ("own_task.py", "own_method.py"):
        shutil.copy(EXAMPLES / name, tmp_path / "mine" / name)
    (tmp_path / "empty").mkdir()
    return tmp_path / "empty"


@pytest.mark.parametrize(("name", "most"), [("own_task", 60), ("own_method", 25)])
def test_they_are_short(name: str, most: int) -> None:
    assert len((EXAMPLES / f"{name}.py").read_text(encoding="utf-8").splitlines()) <= most


def test_they_keep_their_promises() -> None:
    assert check_task(loaded("own_task").Text()) == []
    check_method(loaded("own_method").TwoRadii())


def test_padding_counts_for_nothing() -> None:
    module = loaded("own_task")
    task = module.Text(width=4)
    inputs, targets = torch.randint(1, 128, (3, 9)), torch.randint(1, 128, (3, 9))
    targets[:, 6:] = module.PAD
    model = task.model("default")
    whole, cut = (task.loss(model, batch) for batch in [(inputs, targets), (inputs[:, :6], targets[:, :6])])
    assert whole.count == cut.count == 18
    assert torch.allclose(whole.total, cut.total)
    assert module.PERPLEXITY.over([(torch.zeros(3, 9, 128), (inputs, targets))]) == pytest.approx(128)


def test_no_letter_is_seen_before_its_turn() -> None:
    model = loaded("own_task").Text().model("default")
    letters = torch.randint(1, 128, (1, 20))
    changed = letters.clone()
    changed[0, 10:] = 5
    assert torch.equal(model(letters)[:, :10], model(changed)[:, :10])
    assert not torch.equal(model(letters)[:, 10:], model(changed)[:, 10:])


def test_two_equal_radii_are_sam() -> None:
    def trained(method: lowland.Method) -> list[torch.Tensor]:
        torch.manual_seed(0)
        model = torch.nn.Linear(4, 1)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        engine = lowland.Engine(method, model, optimizer, lambda model, batch: model(batch).square().mean(1))
        for batch in torch.randn(5, 8, 4):
            engine.backward(batch)
            optimizer.step()
            optimizer.zero_grad()
        assert engine.cost.gradients / 5 == (2 if isinstance(method, lowland.SAM) else 3)
        assert engine.cost.sequential / 5 == 2
        return [p.detach() for p in model.parameters()]

    kind = loaded("own_method").TwoRadii
    for p, q in zip(trained(kind(rho=0.1, ratio=1)), trained(lowland.SAM(rho=0.1)), strict=True):
        assert torch.allclose(p, q, atol=1e-7)
    assert not all(map(torch.equal, trained(kind(rho=0.1)), trained(lowland.SAM(rho=0.1))))


@pytest.mark.slow
def test_one_command_from_an_empty_folder_and_the_page_s_own(place: Path) -> None:
    shown = compared(place)
    assert "perplexity" in shown
    assert "TwoRadii" in shown
    assert shown.count("(kept)") == 0
    assert len(list((place / "runs").glob("*/run.jsonl"))) == 6
    (page,) = (place / "runs").glob("*.html")
    (command,) = re.findall(r"lowland compare [^<]*", html.unescape(page.read_text(encoding="utf-8")))
    again = python(["-m", *shlex.split(command)], place)
    assert again.returncode == 0, again.stderr
    assert again.stdout.count("(kept)") == 6

    # The very same command, after a change of the method: only what it made is made anew.
    method = place.parent / "mine" / "own_method.py"
    method.write_text(method.read_text().replace("b.grad, 0.5)", "b.grad, 0.25)"), encoding="utf-8")
    assert compared(place).count("(kept)") == 4


@pytest.mark.slow
def test_nothing_of_another_width_or_source_is_kept(place: Path) -> None:
    assert compared(place, methods=["plain"], seeds=1).count("(kept)") == 0
    assert compared(place, methods=["plain"], seeds=1).count("(kept)") == 1
    assert compared(place, "Text:width=8", ["plain"], 1).count("(kept)") == 0
    task = place.parent / "mine" / "own_task.py"
    before = task.read_text(encoding="utf-8")
    task.write_text(before.replace("reduction=", "label_smoothing=0.1, reduction="), encoding="utf-8")
    assert compared(place, methods=["plain"], seeds=1).count("(kept)") == 0
    # The source of a model that lies beside the task counts, too, and not only its width.
    model = place.parent / "mine" / "net.py"
    head, net, tail = re.split(r"(?=^class Net)|(?=^def summed)", before, flags=re.MULTILINE)
    task.write_text(f"{head}\nfrom net import Net\n{tail.replace('Net(self.width)', 'Net()')}", encoding="utf-8")
    model.write_text(f"from torch import nn\n{net}", encoding="utf-8")
    assert compared(place, methods=["plain"], seeds=1).count("(kept)") == 0
    model.write_text(f"from torch import nn\n{net.replace('width=16', 'width=8')}", encoding="utf-8")
    assert compared(place, methods=["plain"], seeds=1).count("(kept)") == 0
    model.write_text(f"from torch import nn\n{net.replace('.relu()', '.tanh()')}", encoding="utf-8")
    assert compared(place, methods=["plain"], seeds=1).count("(kept)") == 0
    model.write_text(f"from torch import nn\n{net}", encoding="utf-8")
    assert compared(place, methods=["plain"], seeds=1).count("(kept)") == 1


CALL = """
from own_method import TwoRadii
from own_task import Text

from lowland import lab

for seeds in (1, [0]):
    result = lab.compare(Text(), ["plain", TwoRadii(ratio=0.25)], seeds=seeds, threads=1)
print(result)
assert result.page.is_file()
assert [record.metrics[0].name for record in result.records] == ["perplexity"] * 2
for record in result.records:
    print("reached", record.score)
"""


@pytest.mark.slow
def test_one_call_from_python(place: Path) -> None:
    script = place.parent / "mine" / "script.py"
    script.write_text(CALL, encoding="utf-8")
    done = python([str(script)], place)
    assert done.returncode == 0, done.stderr
    assert "TwoRadii:ratio=0.25" in done.stdout
    assert [line[:5] for line in done.stderr.splitlines()] == ["[1/2]", "[2/2]"]  # the second call has kept both
    reached = [float(value) for value in re.findall(r"^reached (.*)", done.stdout, flags=re.MULTILINE)]
    assert len(reached) == 2
    assert all(2 < perplexity < 8 for perplexity in reached)  # the frequencies of letters alone have about 20

    (page,) = (place / "runs").glob("*.html")
    (command,) = re.findall(r"<pre>(python [^<]*)", html.unescape(page.read_text(encoding="utf-8")))
    again = python(shlex.split(command)[1:], place)
    assert again.returncode == 0, again.stderr
    assert again.stderr == ""  # both runs were kept
