"""Trains and compares methods: a task is data, model and loss; a comparison trains a task with several methods.

::

    result = lab.compare(Pose(), ["plain", "sam", VaSSO(), "plain@epochs=16"], seeds=5, out="runs")
    print(result)          # the table and a sentence
    result.page            # an HTML page with figures
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lowland.lab.budget import Budget
    from lowland.lab.config import RunConfig
    from lowland.lab.metric import Metric
    from lowland.lab.names import make as load
    from lowland.lab.recipe import Recipe
    from lowland.lab.studies.door import Comparison, compare, run_study
    from lowland.lab.studies.study import Study
    from lowland.lab.studies.sweeps.door import SweepResult, sweep
    from lowland.lab.studies.sweeps.settings import SweepSettings
    from lowland.lab.survival.settings import Survival
    from lowland.lab.survival.survive import survive
    from lowland.lab.task import Dataset, Task
    from lowland.lab.training.run import train
    from lowland.lab.training.trained import Trained, load_run

__all__ = [
    "Budget",
    "Comparison",
    "Dataset",
    "Metric",
    "Recipe",
    "RunConfig",
    "Study",
    "Survival",
    "SweepResult",
    "SweepSettings",
    "Task",
    "Trained",
    "compare",
    "load",
    "load_run",
    "run_study",
    "survive",
    "sweep",
    "train",
]

_PLACES = {
    "Budget": "budget:Budget",
    "Comparison": "studies.door:Comparison",
    "Dataset": "task:Dataset",
    "Metric": "metric:Metric",
    "Recipe": "recipe:Recipe",
    "RunConfig": "config:RunConfig",
    "Study": "studies.study:Study",
    "Survival": "survival.settings:Survival",
    "SweepResult": "studies.sweeps.door:SweepResult",
    "SweepSettings": "studies.sweeps.settings:SweepSettings",
    "Task": "task:Task",
    "Trained": "training.trained:Trained",
    "compare": "studies.door:compare",
    "load": "names:make",
    "load_run": "training.trained:load_run",
    "run_study": "studies.door:run_study",
    "survive": "survival.survive:survive",
    "sweep": "studies.sweeps.door:sweep",
    "train": "training.run:train",
}


def __getattr__(name: str) -> Any:
    """Import a name at its first use, so that a task file does not load the trainer and the report."""
    if name not in _PLACES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module, _, attribute = _PLACES[name].partition(":")
    return getattr(import_module(f"{__name__}.{module}"), attribute)
