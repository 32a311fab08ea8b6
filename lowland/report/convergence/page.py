"""The page of a convergence study as one HTML file, and its figures as SVG files."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from lowland.report.convergence import figures
from lowland.report.convergence.record import ProblemRecord, Study
from lowland.report.convergence.words import HEADINGS, HELP, cells, figure_text, setting, title, verdict
from lowland.report.drawing import COLORS
from lowland.report.export import standalone
from lowland.report.page import Figure, environment, write_text

TITLE = "SAM and SAMPa on convex problems with a fixed radius"


def write_page(study: Study, path: str | Path, command: str | None = None) -> Path:
    """Write the page atomically.

    Args:
        study: The study.
        path: The file to write; its folder is created if missing.
        command: The command that makes it again.

    Returns:
        The path.

    Raises:
        ArgumentError: The file cannot be written.
    """
    return write_text(path, render(study, command))


def render(study: Study, command: str | None = None) -> str:
    """The page as a string; equal studies have equal pages. The arguments are those of :func:`write_page`."""
    html: str = (
        environment()
        .get_template("convergence/page.html")
        .render(
            title=TITLE,
            study=study,
            verdict=verdict(study),
            first=[figure for name, figure in _figures(study) if name == "floors"],
            sections=[_section(study, problem) for problem in study.problems],
            headings=HEADINGS,
            help=HELP,
            colors=list(enumerate(COLORS, 1)),
            command=command,
        )
    )
    return html


def export(study: Study, folder: str | Path) -> list[Path]:
    """Write the figures as SVG on white.

    Args:
        study: The study.
        folder: The folder of the files; it is created if missing.

    Returns:
        The files written.

    Raises:
        ArgumentError: A file cannot be written.
    """
    return [
        write_text(Path(folder) / f"convergence-{name}.svg", standalone(figure.svg)) for name, figure in _figures(study)
    ]


def _section(study: Study, problem: ProblemRecord) -> dict[str, Any]:
    look = figures.looks(study)
    own = f"{problem.name}-"
    return {
        "name": problem.name,
        "title": title(problem),
        "setting": setting(problem),
        "covered": problem.covered or problem.noisy,
        "rows": [(look[trace.method].number, cells(trace)) for trace in study.of(problem.name)],
        "reasons": [trace.reason for trace in study.of(problem.name)],
        "figures": [figure for name, figure in _figures(study) if name.startswith(own)],
    }


def _figures(study: Study) -> Iterator[tuple[str, Figure]]:
    """All figures with something to draw, by the names of their files."""
    for name, svg, caption in _drawings(study):
        if svg:
            yield name, Figure(svg, caption, caption)


def _drawings(study: Study) -> Iterator[tuple[str, str, str]]:
    yield (
        "floors",
        figures.floors(study),
        "Where the methods settle on ||x||² against the step: the root mean square of the distance over the last "
        "quarter of a training that is long enough to settle. Dotted lines are closed forms.",
    )
    for problem in study.problems:
        name = problem.name
        yield f"{name}-distance", figures.distances(study, name), f"Distance to the minimizer on {name}."
        yield (
            f"{name}-lyapunov",
            figures.lyapunov(study, name),
            f"The Lyapunov function minus the minimum on {name}: V of SAMPa, the loss of SAM and plain descent.",
        )
        exponents = study.rate_slopes.get(name, {})
        fitted = ", ".join(f"{method} {figure_text(value, '.2f')}" for method, value in exponents.items())
        yield (
            f"{name}-rate",
            figures.rates(study, name),
            f"Trainings of T steps on {name}, with the step that minimizes SAMPa's bound for T, up to the step of the "
            f"table. Fitted exponents of T: {fitted}. The bound is that of SAMPa with lam = 0.",
        )
