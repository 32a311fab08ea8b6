"""Exports tables as Markdown files and figures as SVG files, for documents and papers."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from lowland.core.errors import ArgumentError
from lowland.report import measures
from lowland.report.grouping import chosen, groups
from lowland.report.summary import summarize
from lowland.report.table import markdown
from lowland.runs.record import RunRecord


def export(records: Sequence[RunRecord], folder: str | Path) -> list[Path]:
    """Write ``table.md`` and the figures as SVG on white, named after their comparison.

    Args:
        records: the runs; each task, model, label noise and budget gets separate files.
        folder: the folder of the files; it is created if missing.

    Returns:
        The files written.

    Raises:
        ArgumentError: The folder cannot be written to.
    """
    target = Path(folder)
    written: list[Path] = []
    try:
        target.mkdir(parents=True, exist_ok=True)
        for heading, members in groups(records).items():
            name = re.sub(r"[^\w.-]+", "-", "-".join(filter(None, heading))).strip("-")
            for ending, text in _parts(members).items():
                path = target / f"{name}-{ending}"
                path.write_text(text, encoding="utf-8")
                written.append(path)
    except OSError as error:
        raise ArgumentError(
            f"export must be a folder that can be written to, but {target} cannot be ({error.strerror}); choose another"
        ) from None
    return written


def standalone(svg: str) -> str:
    """An SVG document from an inline SVG element: with fixed colors and a white background.

    Example:
        >>> standalone('<svg viewBox="0 0 2 1"><path fill="var(--c1, #0072b2)"/></svg>').count("var(")
        0
    """
    svg = re.sub(r"var\(--[\w-]+, ([^()]+)\)", r"\1", svg)
    head, body = svg.split(">", 1)
    if "xmlns=" not in head:
        head = head.replace("<svg", '<svg xmlns="http://www.w3.org/2000/svg"', 1)
    if "xmlns:xlink" not in head:
        head = head.replace("<svg", '<svg xmlns:xlink="http://www.w3.org/1999/xlink"', 1)
    return f'{head}>\n<rect width="100%" height="100%" fill="#ffffff"/>{body}\n'


def _parts(records: Sequence[RunRecord]) -> dict[str, str]:
    from lowland.report.curves import curves  # here: matplotlib loads slowly
    from lowland.report.drawing import looks
    from lowland.report.gains import gains
    from lowland.report.landscapes import landscapes
    from lowland.report.survival import survival

    rows, finished = summarize(records), chosen(records)
    look = looks(rows)
    figures = {
        "gains.svg": gains(rows, look),
        "epochs.svg": curves(finished, rows, look),
        "seconds.svg": curves(finished, rows, look, over="seconds"),
        "loss.svg": curves(finished, rows, look, value="train_loss"),
        **{f"{drawn.name}.svg": drawn.svg for drawn in landscapes(finished, rows, look)},
    }
    figures |= {f"survival-{number}.svg": svg for number, (svg, _) in enumerate(survival(rows, look), 1)}
    tables = {"table.md": markdown(rows)}
    tables |= {f"{group}.md": markdown(rows, shown) for group, shown in measures.tables(rows).items()}
    return tables | {name: standalone(svg) for name, svg in figures.items() if svg}
