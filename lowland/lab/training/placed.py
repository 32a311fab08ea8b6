"""Chooses the mesh of a run by the planner, or takes the choice of the run that it resumes."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from lowland.core.errors import StateError
from lowland.lab.config import AUTO, RunConfig
from lowland.lab.training.planned import subject_of
from lowland.lab.training.prepare import complete, loader_of
from lowland.lab.training.trainer import settings
from lowland.parallel import World, world
from lowland.planner import planning as planner
from lowland.planner.layout import Layout
from lowland.runs.file import RUN_FILE, planned

SECONDS = 20.0  # of measuring, once for every task, model, method and number of ranks
_choices: dict[tuple[Any, ...], dict[str, Any]] = {}  # what this process has planned


def placed(config: RunConfig, folder: Path) -> tuple[RunConfig, dict[str, Any] | None]:
    """The run with a mesh in place of "auto", and the plan that chose it; all ranks call this alike.

    A run that is resumed keeps its mesh if there are as many ranks as before.

    Args:
        config: The run.
        folder: The run folder.

    Returns:
        The run; and ``mesh``, ``ranks``, ``seconds`` (predicted for a step) and ``why``, None without "auto".
    """
    if config.mesh != AUTO:
        return config, None
    with world(None, config.device) as ranks:
        earlier = ranks.broadcast(planned(folder) if ranks.first else None)
        if earlier is not None:
            _check(earlier, folder)
        if earlier is None or earlier["ranks"] != ranks.size:
            key = (config.task_text, config.model_text, config.recipe, config.method_text, ranks.size, config.shard)
            if key not in _choices:
                _choices[key] = ranks.broadcast(_chosen(config, ranks))  # a clock decides: that of the first rank
            earlier = _choices[key]
    return replace(config, mesh=earlier["mesh"]), earlier


def _check(earlier: dict[str, Any], folder: Path) -> None:
    """Refuse a choice that was edited; on all ranks, which would wait for each other.

    Raises:
        StateError: It has other entries than those that :func:`placed` returns.
    """
    kinds: dict[str, Any] = {"mesh": str | None, "ranks": int, "why": str}
    wrong = [name for name, kind in kinds.items() if name not in earlier or not isinstance(earlier[name], kind)]
    if wrong:
        raise StateError(
            f"the line 'planned' of {folder / RUN_FILE} must name mesh, ranks and why, but its {wrong[0]} is "
            f"{earlier.get(wrong[0])!r}; name the mesh in place of auto, or begin the run anew"
        )


def _chosen(config: RunConfig, ranks: World) -> dict[str, Any]:
    """Measure, and choose."""
    if ranks.size == 1:
        return {"mesh": None, "ranks": 1, "seconds": None, "why": "one process has no mesh"}

    def allowed(layout: Layout) -> bool:
        return layout.data > 1 or not config.shard

    with settings(config), torch.random.fork_rng(devices=[config.on()] if config.on().type == "cuda" else []):
        loader = loader_of(config)
        methods = {config.method_text: complete(config, loader)}
        plan = planner.of_subject(subject_of(config, loader), methods, seconds=SECONDS, where=allowed)
    best = plan.best()
    return {
        "mesh": best.layout.mesh,
        "ranks": ranks.size,
        "seconds": best.seconds,
        "why": plan.why(config.method_text),
    }
