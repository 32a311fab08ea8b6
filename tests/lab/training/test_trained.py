"""A finished run read back: the weights bit for bit, also the average's, and refusals where they are not the run's."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from forked import python

from lowland.core.errors import DataError, StateError
from lowland.lab import load_run, names
from lowland.lab.config import RunConfig
from lowland.lab.tasks.digits import Digits
from lowland.lab.training import checkpoint
from lowland.lab.training.evaluate import evaluate, fingerprint
from lowland.lab.training.run import train


@pytest.mark.parametrize("model", ["mlp", "convnet"])
@pytest.mark.parametrize("ema", [None, 0.9])
def test_the_model_has_the_final_weights(config: RunConfig, model: str, ema: float | None, tmp_path: Path) -> None:
    config = replace(config, model=model, seed=3, validation=0.2, recipe=config.recipe.replace(ema=ema))
    end = train(config, tmp_path / "run")
    trained = load_run(tmp_path / "run", task=config.task, device="cpu")
    assert fingerprint(trained.model) == end["weights_sha256"]
    assert not any(module.training for module in trained.model.modules())
    for part in ("test", "validation"):
        batches = trained.loader.evaluation(part=part)
        figures = evaluate(trained.task, trained.model, batches, device=torch.device("cpu"))
        assert figures == end[part]
    assert (trained.config.seed, trained.record.seed, trained.config.validation) == (3, 3, 0.2)


def test_a_task_is_found_by_its_text(config: RunConfig, tmp_path: Path) -> None:
    own = replace(config, task=Digits(noise=0.3), budget=replace(config.budget, limit=2))
    train(own, tmp_path / "run")
    trained = load_run(tmp_path / "run", device="cpu")
    assert trained.task == Digits(noise=0.3).seeded(0)
    with pytest.raises(StateError, match=r"task must be that of the run, digits:noise=0\.3, but is digits"):
        load_run(tmp_path / "run", task=Digits())


TASK = """
from dataclasses import dataclass
from lowland.lab.tasks.digits import Digits

@dataclass(frozen=True, kw_only=True)
class Own(Digits):
    def loss(self, model, batch):
        return super().loss(model, batch) * 1
"""
NET = """
from torch import nn

def net():
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
"""


@pytest.mark.parametrize("what", ["task", "model"])
def test_changed_code_is_not_measured_as_that_of_the_run(
    config: RunConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("own.py").write_text(TASK)
    Path("nets.py").write_text(NET)
    train(replace(config, task=names.make("own.py:Own"), model="nets.py:net"), tmp_path / "run")
    assert load_run(tmp_path / "run").record.seed == config.seed
    if what == "task":
        Path("own.py").write_text(TASK.replace("* 1", "* 1000"))
    else:
        Path("nets.py").write_text(NET.replace("nn.Flatten()", "nn.Flatten(), nn.Identity()"))
    Path("again.py").write_text("from lowland.lab import load_run\nload_run('run')\n")
    done = python(["again.py"], tmp_path)
    assert done.returncode == 1
    assert f"StateError: the code of the {what} must be that of the run in run" in done.stderr


def test_refusals(config: RunConfig, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no run file"):
        load_run(tmp_path)
    folder = tmp_path / "run"
    train(config, folder)
    lines = (folder / "run.jsonl").read_text().splitlines()

    unfinished = tmp_path / "unfinished"
    shutil.copytree(folder, unfinished)
    (unfinished / "run.jsonl").write_text("\n".join(lines[:-1]) + "\n")
    with pytest.raises(StateError, match="must have finished"):
        load_run(unfinished, task=config.task)

    lost = tmp_path / "lost"
    shutil.copytree(folder, lost)
    shutil.rmtree(lost / checkpoint.FOLDER)
    with pytest.raises(StateError, match="has none, so its weights are lost"):
        load_run(lost, task=config.task)

    other = tmp_path / "other"
    shutil.copytree(folder, other)
    end = json.loads(lines[-1]) | {"weights_sha256": "f" * 64}
    (other / "run.jsonl").write_text("\n".join([*lines[:-1], json.dumps(end)]) + "\n")
    with pytest.raises(StateError, match=r"must have the hash ffffffff .*, but have"):
        load_run(other, task=config.task)

    with pytest.raises(StateError, match=r"the model must be that of the run .* is missing or has another shape"):
        load_run(
            folder, task=config.task, model=lambda: torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 3))
        )
