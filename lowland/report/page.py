"""The report as one HTML file without scripts and without links to other servers, for desktop, phone and paper."""

from __future__ import annotations

import os
import re
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lowland.core.errors import ArgumentError, MissingExtraError
from lowland.report import measures
from lowland.report.columns import columns, own_recipe, unsaid_fields
from lowland.report.columns import value_text as _value
from lowland.report.grouping import budget_text, chosen, groups, noise_text
from lowland.report.sentences import notes, verdict
from lowland.report.summary import Row, summarize
from lowland.report.values import NONE, listed, minus
from lowland.report.values import plural as _plural
from lowland.runs.record import RunRecord

if TYPE_CHECKING:
    from lowland.report.drawing import Look


@dataclass(frozen=True)
class Figure:
    """A figure of the page: its SVG element, its text alternative and its caption."""

    svg: str
    alt: str
    caption: str
    wide: bool = False  # whether it has the full width of the page


def write_page(
    records: Sequence[RunRecord],
    path: str | Path,
    title: str | None = None,
    command: str | None = None,
    remarks: Sequence[str] = (),
) -> Path:
    """Write the page atomically: after an error the old file is unchanged.

    Args:
        records: The runs; each task, model, label noise and budget gets its own section.
        path: The file to write; its folder is created if missing.
        title: The heading; by default it is made from the records.
        command: The command that reproduces the runs; by default the commands that the runs recorded.
        remarks: Further notes on the comparison, such as which methods were left out.

    Returns:
        The path of the page.

    Raises:
        ArgumentError: There are no records, or the file cannot be written.
    """
    return write_text(path, render(records, title=title, command=command, remarks=remarks))


def write_text(path: str | Path, text: str) -> Path:
    """Write a file atomically: after an error the old file is unchanged.

    Args:
        path: The file to write; its folder is created if missing.
        text: Its contents.

    Returns:
        The path.

    Raises:
        ArgumentError: The file cannot be written.
    """
    target = Path(path)
    try:
        _replace(target, text)
    except OSError as error:
        raise ArgumentError(
            f"out must be a file that can be written to, but {target} cannot be ({error.strerror or error}); "
            "choose another"
        ) from None
    return target


def _replace(target: Path, html: str) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    handle, draft = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}.")
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(html)
        mask = os.umask(0)
        os.umask(mask)
        os.chmod(draft, 0o666 & ~mask)  # only the owner can read a file of mkstemp
        os.replace(draft, target)
    except BaseException:
        Path(draft).unlink(missing_ok=True)
        raise


def render(
    records: Sequence[RunRecord],
    *,
    title: str | None = None,
    command: str | None = None,
    remarks: Sequence[str] = (),
) -> str:
    """The page as a string; the arguments are those of :func:`write_page`."""
    if not records:
        raise ArgumentError("records must hold at least one run, but is empty; name the folder of a comparison")
    from lowland.report import drawing  # here: matplotlib loads slowly, and tables do not need it

    template = environment().get_template("page.html")
    sections = [_section(group) for group in groups(records).values()]
    for section in sections:
        section["notes"] += remarks
    heading = title or (sections[0]["title"] if len(sections) == 1 else f"{len(sections)} comparisons")
    commands = [command] if command else sorted({r.command for r in records if r.command})
    html: str = template.render(
        title=heading,
        sections=sections,
        commands=commands,
        colors=list(enumerate(drawing.COLORS, 1)),
        date=max(record.time for record in records)[:10],
        dash=NONE,
    )
    return html


def environment() -> Any:
    """The templates of pages.

    Raises:
        MissingExtraError: Jinja2 is not installed.
    """
    try:
        from jinja2 import Environment, FileSystemLoader, StrictUndefined
    except ImportError:
        raise MissingExtraError("Jinja2", "lab") from None
    made = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.filters["parts"] = re.compile(r"@?[^:,@]*[:,]?").findall  # a long method text may break between them
    made.filters["own"] = own_recipe
    made.filters["unsaid"] = unsaid_fields
    return made


def group_title(records: Sequence[RunRecord]) -> str:
    """The heading of one comparison: ``digits · mlp · 6 methods × 5 seeds``."""
    rows = summarize(records)
    counts = sorted({len(row.seeds) + len(row.unfinished) for row in rows})
    seeds = "–".join(map(str, dict.fromkeys((counts[0], counts[-1]))))
    noun = "contestant" if any("@" in row.contestant for row in rows) else "method"
    size = f"{_plural(len(rows), noun)} × {seeds} seed{'' if seeds == '1' else 's'}"
    return " · ".join(part for part in (records[0].task, records[0].model, noise_text(records[0]), size) if part)


def _section(records: Sequence[RunRecord]) -> dict[str, Any]:
    from lowland.report.drawing import looks

    rows = summarize(records)
    shown, look, used = columns(rows), looks(rows), chosen(records)
    return {
        "title": group_title(records),
        "verdict": verdict(rows),
        "budget": _budget(records),
        "notes": list(notes(records)),
        "columns": shown,
        "rows": [(row, look[row.contestant].number, [(column, column.cell(row)) for column in shown]) for row in rows],
        "measures": [
            (group, taken, [(look[row.contestant].number, row, [(c, c.cell(row)) for c in taken]) for row in rows])
            for group, taken in measures.tables(rows).items()
        ],
        "first": _first(rows, look),
        "figures": _figures(used, rows, look) + _landscapes(used, rows, look),
        "runs": [_run(record) for record in records],
        "setting": _setting(records),
    }


def _budget(records: Sequence[RunRecord]) -> str:
    """The sentence about the budget and its exceptions; empty if no budget is recorded."""
    first = next((r for r in records if "@" not in r.contestant), records[0])
    shared = budget_text(first)
    others = {r.contestant: budget_text(r) for r in records if budget_text(r) != shared}
    named = listed([f"{name} ({budget})" for name, budget in others.items()])
    return f"Equal budget: {shared} each{f', except {named}' if others else ''}." if shared else ""


def _first(rows: Sequence[Row], look: Mapping[str, Look]) -> list[Figure]:
    """The gain figure for wide screens and for narrow screens; empty if no run has finished."""
    from lowland.report.gains import cut, gains

    base = next((row.label for row in rows if row.baseline and row.score), None)
    metric, bars = rows[0].metric, any(len(row.seeds) > 1 for row in rows)
    if base is None:
        caption = f"Test {metric.name} against cost." + (" Bars are 95 % intervals over seeds." if bars else "")
    else:
        lower = "" if metric.higher else f" A gain is positive where the {metric.name} is lower."
        interval = " with its 95 % interval" if bars else ""
        marks = f" Filled marks differ from {base} after correction, hollow marks may not." if bars else ""
        caption = f"Gain over {base} in the same seed{interval}; the line at 0 is {base}.{marks}{lower}"
    if any(style.grey for style in look.values()):
        caption += " The eight largest gains have a color."
    if cut(rows):
        caption += " Intervals that leave the figure are cut."
    drawings = [gains(rows, look), gains(rows, look, narrow=True)]
    return [Figure(svg, caption, caption) for svg in drawings if svg]


def _figures(records: Sequence[RunRecord], rows: Sequence[Row], look: Mapping[str, Look]) -> list[Figure]:
    from lowland.report.curves import Over, Value, banded, curves
    from lowland.report.survival import survival

    mean = ", mean over seeds" if any(len(row.seeds) > 1 for row in rows) else ""
    name = rows[0].metric.name
    captions: dict[tuple[Value, Over], str] = {
        ("test", "epoch"): f"Test {name} by epoch{mean}. The axis shows the values after a third of the training.",
        ("test", "seconds"): f"Test {name} by training time, without evaluation{mean}.",
        ("train_loss", "epoch"): f"Training loss by epoch{mean}.",
    }
    figures = []
    for (value, over), caption in captions.items():
        band = " Bands are 95 % intervals." if banded(records, rows, value, over) else ""
        svg = curves(records, rows, look, value=value, over=over)
        if svg:
            figures.append(Figure(svg, caption, caption + band))
    return [*figures, *(Figure(svg, caption, caption) for svg, caption in survival(rows, look))]


def _landscapes(records: Sequence[RunRecord], rows: Sequence[Row], look: Mapping[str, Look]) -> list[Figure]:
    from lowland.report.landscapes import landscapes

    return [Figure(drawn.svg, drawn.caption, drawn.caption, drawn.wide) for drawn in landscapes(records, rows, look)]


def _setting(records: Sequence[RunRecord]) -> list[tuple[str, list[tuple[str, str]]]]:
    """Groups of settings, each with a heading; if the runs differ in a setting, all its values are listed."""
    first = records[0]
    run = [
        ("task", first.task),
        ("model", first.model),
        ("parameters", _values(f"{r.parameters:,}" for r in records if r.parameters is not None)),
        ("budget", budget_text(first) or NONE),
        ("label noise", noise_text(first) or "none"),
        ("seeds", _values(str(seed) for seed in sorted({r.seed for r in records}))),
    ]
    return [
        ("Comparison", run),
        ("Recipe", _merged([record.recipe for record in records])),
        ("Versions", _merged([record.versions for record in records])),
        ("Machine", _merged([record.machine for record in records])),
    ]


def _merged(mappings: Sequence[Mapping[str, Any]]) -> list[tuple[str, str]]:
    names = dict.fromkeys(name for mapping in mappings for name in mapping)
    return [(name.replace("_", " "), _values(_value(m[name]) for m in mappings if name in m)) for name in names]


def _values(texts: Iterable[str]) -> str:
    return ", ".join(dict.fromkeys(texts)) or NONE


def _run(record: RunRecord) -> dict[str, Any]:
    """One row of the table of runs; for an unfinished run, the values of its last epoch."""
    last = {} if not record.epochs else vars(record.epochs[-1]) | {"epochs": record.epochs[-1].epoch}
    shown = last | ({} if record.end is None else vars(record.end))
    metric = record.metric
    best = None if record.end is None or record.end.best is None else record.end.best.test.get(metric.name)
    figures = [
        ("method", record.contestant),
        ("seed", str(record.seed)),
        ("epochs", _scaled(shown.get("epochs", 0), 1, ",.0f")),
        ("steps", _scaled(shown.get("step", 0), 1, ",.0f")),
        (metric.name, _scaled(shown.get("test", {}).get(metric.name), metric.scale, ".4g")),
        ("at best epoch", _scaled(best, metric.scale, ".4g")),
        ("train loss", _scaled(shown.get("train_loss"), 1, "#.4g")),
        ("seconds", _scaled(shown.get("seconds"), 1, ",.1f")),
        ("ms per step", _scaled(shown.get("seconds_per_step"), 1000, "#.3g")),
        ("MiB", _scaled(shown.get("peak_memory"), 2**-20, ",.1f")),
        ("m-sharpness", _scaled(shown.get("m_sharpness"), 1, "#.3g")),
        ("weights", shown.get("weights_sha256", "")[:8] or NONE),
    ]
    resumed = [f"resumed {_plural(record.resumed, 'time')}"] if record.resumed else []
    ended = "unfinished" if record.pruned is None else f"pruned by a sweep after epoch {record.pruned}"
    unfinished = [] if record.finished else [ended]
    return {"name": record.run, "figures": figures, "remarks": [*unfinished, *resumed, *record.warnings]}


def _scaled(value: float | None, scale: float, spec: str) -> str:
    return NONE if value is None else minus(format(scale * value, spec))
