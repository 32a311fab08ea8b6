"""The page of simulated trainings as one HTML file, and its figures as SVG files."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import get_args

from lowland.report.drawing import COLORS
from lowland.report.export import standalone
from lowland.report.page import Figure, environment, write_text
from lowland.report.planner import figures
from lowland.report.planner.record import Kept, Scaling
from lowland.report.planner.words import HEADINGS, HELP, NOT_COVERED, TITLES, cells, shown, verdict

TITLE = "Sharpness-aware minimization on many devices"
FRONTIER = ("pair", "bases")  # the figures of where SAMPa wins


def write_page(study: Scaling, path: str | Path, command: str | None = None) -> Path:
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


def render(study: Scaling, command: str | None = None) -> str:
    """The page as a string; equal studies have equal pages. The arguments are those of :func:`write_page`."""
    drawn = dict(_figures(study))
    look = figures.looks(study)
    tables = [
        (kept, TITLES[kept], [(look[p.method].number, cells(p, study.examples)) for p in shown(study, kept)])
        for kept in get_args(Kept)
    ]
    html: str = (
        environment()
        .get_template("planner/simulation.html")
        .render(
            title=TITLE,
            study=study,
            verdict=verdict(study),
            frontier=[figure for name, figure in drawn.items() if name in FRONTIER],
            scaling=[figure for name, figure in drawn.items() if name not in FRONTIER],
            tables=tables,
            headings=HEADINGS,
            help=HELP,
            limits=NOT_COVERED,
            colors=list(enumerate(COLORS, 1)),
            command=command,
        )
    )
    return html


def export(study: Scaling, folder: str | Path) -> list[Path]:
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
        write_text(Path(folder) / f"simulation-{name}.svg", standalone(figure.svg)) for name, figure in _figures(study)
    ]


def _figures(study: Scaling) -> Iterator[tuple[str, Figure]]:
    """All figures with something to draw, by the names of their files."""
    for name, drawing, caption in _drawings(study):
        if drawing:
            yield name, Figure(drawing, caption, caption)


def _drawings(study: Scaling) -> Iterator[tuple[str, str, str]]:
    both = (
        "Marks are simulated, with stragglers, checkpoints and failures; dashed lines are the closed form without them."
    )
    yield (
        "pair",
        figures.pair(study),
        "Two devices: by how much SAMPa is faster than data-parallel SAM on both (blue lines), and where it is slower "
        "than SAM on one of them (grey area), by batch and bandwidth. Dotted lines are the rates that documents state.",
    )
    yield (
        "bases",
        figures.bases(study),
        "More devices: SAMPa is faster than data-parallel SAM on as many devices if a pass has a larger base than the "
        "line of its link between hosts, with one batch for every device. Below 0, it is faster with any base.",
    )
    yield (
        "efficiency-device",
        figures.efficiency(study, "per device"),
        f"Efficiency with one batch for every device. {both}",
    )
    yield (
        "efficiency-global",
        figures.efficiency(study, "global"),
        f"Efficiency with one batch for all devices. {both}",
    )
    yield (
        "steps",
        figures.step_seconds(study),
        "Mean time of a simulated step with one batch for all devices. Data parallelism saturates where the base of "
        "the two passes and the all-reduces remain.",
    )
    yield (
        "gains",
        figures.gains(study),
        "How many times faster than data-parallel SAM's a simulated step is on as many devices, with one batch for all "
        "devices. SAMPa does not divide the batch further, but takes the base of a pass once where SAM takes it twice.",
    )
    yield (
        "costs",
        figures.costs(study),
        "What a training costs against how long it takes, with one batch for all devices; to the right it is faster. "
        "Each mark is a number of devices.",
    )
