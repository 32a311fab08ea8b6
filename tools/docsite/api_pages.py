"""The pages of the API reference: which names each page has. mkdocstrings fills them from the docstrings."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import lowland
from lowland import lab
from lowland.methods import METHODS


class Page(NamedTuple):
    """A page of the reference.

    Args:
        title: Its title.
        intro: A sentence in Markdown.
        names: Full names, as users import them; a module stands for all that it has.
    """

    title: str
    intro: str
    names: tuple[str, ...]


def _of(module: str, *names: str) -> tuple[str, ...]:
    return tuple(f"{module}.{name}" for name in names)


PAGES = {
    "engine": Page(
        "Engine",
        "What stands in a training loop: the engine, and what a loss function and a batch may be.",
        _of("lowland", "Engine", "ClosureOptimizer", "Loss", "Criterion", "Parts", "Cutter", "Slices", "refresh_stats"),
    ),
    "methods": Page(
        "Methods of your own",
        "What a method is made of. [A method of your own](../own_method.md) shows how to write one; lowland's methods "
        "have [a page each](../methods.md).",
        (
            *_of("lowland", "Method", "Probe", "Reading", "Plan", "Switch", "METHODS"),
            *_of("lowland.methods", "make", "spell"),
            "lowland.vec",
            "lowland.checks",
        ),
    ),
    "geometry": Page(
        "Geometry and schedules",
        "How a gradient becomes a displacement, and radii and methods that change during the training.",
        (*_of("lowland", "Geometry", "L2", "Adaptive", "Layerwise", "Preconditioned", "Spectral"), "lowland.schedule"),
    ),
    "executors": Page(
        "Executors and ranks",
        "Who answers the probes of a method: this process, one vmapped pass, or groups of ranks.",
        (
            *_of("lowland", "Executor", "Local", "Batched", "Mesh", "Counted", "Cost", "displaced"),
            "lowland.parallel",
        ),
    ),
    "lab": Page(
        "Laboratory",
        "Tasks and comparisons in Python; `pip install 'lowland[lab]'`. [A task of your own](../own_task.md) "
        "shows how.",
        _of(
            "lowland.lab",
            *("Task", "Dataset", "Metric", "Recipe", "RunConfig", "Budget"),
            *("compare", "Comparison", "train", "load", "Study", "run_study", "load_run", "Trained"),
            *("survive", "Survival"),
            *("sweep", "SweepResult", "SweepSettings"),
        ),
    ),
    "testing": Page(
        "Checks, sharpness, errors",
        "Checks for methods and tasks of your own, measures of flatness, and the errors that lowland raises.",
        (
            *_of("lowland.testing", "check_method", "method_checks"),
            *_of("lowland.lab.testing", "check_task", "task_checks"),
            *_of("lowland.sharpness", "m_sharpness", "worst_sharpness", "average_sharpness", "hessian_eigenvalues"),
            *_of("lowland.sharpness", "hessian_trace", "hessian_density", "critical_sharpness", "loss_line"),
            *_of("lowland.sharpness", "loss_plane", "loss_between", "Estimate", "Eigenvalues", "Density", "Critical"),
            "lowland.sharpness.Slice",
            "lowland.core.errors",
        ),
    ),
    "integrations": Page(
        "Integrations",
        "One module for each training framework. [In training frameworks](../integrations.md) shows how to use them.",
        (
            *_of("lowland.integrations.transformers", "SharpnessTrainer", "SharpnessMixin", "sharpened"),
            *_of("lowland.integrations.accelerate", "Sharpness"),
            *_of("lowland.integrations.lightning", "Sharpness"),
            *_of("lowland.integrations.skorch", "SharpnessMixin"),
            *_of("lowland.integrations.flower", "Local", "client_app", "FedAvg", "Guarded", "guarded", "Round"),
            *_of(
                "lowland.integrations.flower", "Processes", "arrays_of", "load_arrays", "leading", "follow", "dismiss"
            ),
        ),
    ),
}
# Exported names that have no entry of their own: a base class has, or the page of a method.
ELSEWHERE = {"LowlandError", "StableSAM", *(kind.__name__ for kind in METHODS.values())}


def missing() -> set[str]:
    """What ``lowland`` and ``lowland.lab`` export and no page of the reference has."""
    told = {name for page in PAGES.values() for name in page.names}
    exported = {*_of("lowland", *lowland.__all__), *_of("lowland.lab", *lab.__all__)}
    return exported - told - set(_of("lowland", *ELSEWHERE))


def pages() -> Iterator[tuple[str, str]]:
    """The path and the Markdown of each page."""
    for name, page in PAGES.items():
        entries = "\n\n".join(f"::: {entry}" for entry in page.names)
        yield f"api/{name}.md", f"# {page.title}\n\n{page.intro}\n\n{entries}\n"
