"""Runs whose mesh the planner chooses, and whose executor the clock chooses."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from ranks import on_ranks

from lowland.core.errors import ArgumentError, StateError
from lowland.lab import names
from lowland.lab.budget import Budget
from lowland.lab.config import RunConfig
from lowland.lab.recipe import Recipe
from lowland.lab.training import placed, run
from lowland.runs.file import planned

BASE = RunConfig(
    task=names.make("digits"),
    model="mlp",
    method="sampa",
    seed=0,
    recipe=Recipe(lr=0.05, epochs=2, batch_size=64),
    budget=Budget(limit=6),
    device="cpu",
    mesh="auto",
)


def lines(folder: Path, kind: str) -> list[dict[str, Any]]:
    every = [json.loads(line) for line in (folder / "run.jsonl").read_text().splitlines()]
    return [line for line in every if line["kind"] == kind]


def test_one_process_has_no_mesh(tmp_path: Path) -> None:
    run.train(BASE, tmp_path / "auto")
    run.train(replace(BASE, mesh=None), tmp_path / "none")
    (choice,) = lines(tmp_path / "auto", "planned")
    assert (choice["mesh"], choice["ranks"]) == (None, 1)
    assert not lines(tmp_path / "none", "planned")
    ends = [lines(tmp_path / name, "end")[0]["weights_sha256"] for name in ("auto", "none")]
    assert ends[0] == ends[1]


def test_the_mesh_is_auto_or_a_mesh() -> None:
    with pytest.raises(ArgumentError, match="mesh must be dimensions with their sizes"):
        replace(BASE, mesh="automatic")
    with pytest.raises(ArgumentError, match="executor must be one of"):
        replace(BASE, executor="batched")  # type: ignore[arg-type]


def test_the_choice_of_the_executor_is_recorded_and_resumed(tmp_path: Path) -> None:
    config = replace(BASE, mesh=None, executor="auto", budget=Budget(limit=30))
    run.train(config, tmp_path / "auto")
    (end,) = lines(tmp_path / "auto", "end")
    assert end["executor"] in ("local", "batched")
    run.train(replace(config, executor="local"), tmp_path / "local")
    (local,) = lines(tmp_path / "local", "end")
    assert "executor" not in local
    assert end["test"]["loss"] == pytest.approx(local["test"]["loss"], rel=1e-3)


def trained(folder: Path) -> dict[str, Any]:
    """Train with a planned mesh, and again with the run that is there."""
    size = torch.distributed.get_world_size()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RANK", str(torch.distributed.get_rank()))
        patch.setenv("WORLD_SIZE", str(size))
        patch.setattr(placed, "SECONDS", 0.5)
        seen: list[Any] = []
        plan = placed.planner.of_subject

        def counting(*args: Any, **kwargs: Any) -> Any:
            seen.append(kwargs)
            return plan(*args, **kwargs)

        patch.setattr(placed.planner, "of_subject", counting)
        end = run.train(BASE, folder / "run")
        run.train(replace(BASE, seed=1), folder / "other seed")  # planned once for both
        patch.setattr(placed, "_choices", {})
        config, choice = placed.placed(BASE, folder / "run")  # as if it were resumed: nothing is measured
        return {"end": end, "mesh": config.mesh, "choice": choice, "plans": len(seen)}


@pytest.mark.slow
def test_several_ranks_train_on_the_mesh_that_is_predicted_to_be_the_fastest(tmp_path: Path) -> None:
    first, second = on_ranks(2, trained, tmp_path)
    choice = planned(tmp_path / "run")
    assert choice is not None
    assert choice["mesh"] in ("probe=2", "data=2")
    assert choice["seconds"] > 0
    assert "passes" in choice["why"]
    assert lines(tmp_path / "run", "config")[0]["machine"]["mesh"] == choice["mesh"]
    for one in (first, second):
        assert one["mesh"] == choice["mesh"]
        assert one["choice"] == choice
        assert one["plans"] == 1
    assert first["end"]["weights_sha256"] == second["end"]["weights_sha256"]


@pytest.mark.parametrize("changes", [{"ranks": "2"}, {"mesh": 5}, {"why": None}])
def test_an_edited_choice_is_refused_in_words(changes: dict[str, Any], tmp_path: Path) -> None:
    line = {"kind": "planned", "mesh": None, "ranks": 1, "seconds": None, "why": "one process"} | changes
    (tmp_path / "run.jsonl").write_text(json.dumps(line) + "\n", encoding="utf-8")
    with pytest.raises(StateError, match="must name mesh, ranks and why, but its"):
        placed.placed(BASE, tmp_path)
