"""The page of a plan as one HTML file, and its figures as SVG files."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from lowland.report.drawing import COLORS
from lowland.report.export import standalone
from lowland.report.page import Figure, environment, write_text
from lowland.report.plans import figures
from lowland.report.plans.record import PlanRecord
from lowland.report.plans.words import HEADINGS, HELP, UNCOVERED, cells, recommendation, setting
from lowland.report.values import plural


def write_page(plan: PlanRecord, path: str | Path, command: str | None = None) -> Path:
    """Write the page atomically.

    Args:
        plan: The plan.
        path: The file to write; its folder is created if missing.
        command: The command that makes it again.

    Returns:
        The path.

    Raises:
        ArgumentError: The file cannot be written.
    """
    return write_text(path, render(plan, command))


def render(plan: PlanRecord, command: str | None = None) -> str:
    """The page as a string; equal plans have equal pages. The arguments are those of :func:`write_page`."""
    fastest = plan.fastest()
    look = figures.followed(plan)
    html: str = (
        environment()
        .get_template("plans/page.html")
        .render(
            title=f"{plan.task} · {plan.model}: which method, in which layout",
            plan=plan,
            recommendation=recommendation(plan),
            setting=setting(plan),
            headings=HEADINGS,
            rows=[
                (look[name].number if name in look else 9, cells(one, fastest.get("plain")))
                for name, one in fastest.items()
            ],
            help=HELP,
            uncovered=UNCOVERED,
            wide=[figure for _, figure in _figures(plan) if figure.wide],
            narrow=[figure for _, figure in _figures(plan) if not figure.wide],
            colors=list(enumerate(COLORS, 1)),
            command=command,
        )
    )
    return html


def export(plan: PlanRecord, folder: str | Path) -> list[Path]:
    """Write the figures as SVG on white.

    Args:
        plan: The plan.
        folder: The folder of the files; it is created if missing.

    Returns:
        The files written.

    Raises:
        ArgumentError: A file cannot be written.
    """
    return [write_text(Path(folder) / f"plan-{name}.svg", standalone(figure.svg)) for name, figure in _figures(plan)]


def _figures(plan: PlanRecord) -> Iterator[tuple[str, Figure]]:
    """All figures with something to draw, by the names of their files."""
    for name, svg, caption, wide in _drawings(plan):
        if svg:
            yield name, Figure(svg, caption, caption, wide=wide)


def _drawings(plan: PlanRecord) -> Iterator[tuple[str, str, str, bool]]:
    below = any(min(one.busy, one.exchange) < 0 for one in plan.fastest().values())
    yield (
        "parts",
        figures.parts(plan),
        "Where the time of a step goes, in the fastest layout of every method. A bar ends at the time of the step; the "
        "thin line is its standard error."
        + (" A framed part left of zero is time saved: passes were faster there than alone." if below else ""),
        True,
    )
    yield (
        "layouts",
        figures.by_layout(plan),
        "The time of a step in every layout, with its standard error. Micro-batches bound the examples of one pass.",
        True,
    )
    yield (
        "memory",
        figures.memory(plan),
        "The peak memory of a rank against the time of a step: filled marks are the fastest layout of a method, hollow "
        "marks the other layouts of the methods with a color.",
        True,
    )
    for survey in plan.surveys:
        more = "; bands are the standard error of the line" if any(
            line.error for line in survey.quiet.lines.values()
        ) else ""  # fmt: skip
        yield (
            f"passes-{survey.ranks}",
            figures.lines(survey),
            f"A gradient at the weights on {plural(survey.ranks, 'rank')}, against the examples of a rank: fitted "
            f"lines{more}. In layouts the time includes exchanges.",
            False,
        )
