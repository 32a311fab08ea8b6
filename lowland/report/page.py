"""The report as one HTML file that needs nothing else: no network, no scripts; for screen, phone and paper."""

from __future__ import annotations

import os
import re
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lowland.core.errors import ArgumentError, MissingExtraError
from lowland.report.grouping import budget_text, chosen, groups, noise_text
from lowland.report.sentences import notes, verdict
from lowland.report.summary import Row, summarize
from lowland.report.table import columns, legend, own_recipe
from lowland.report.table import value_text as _value
from lowland.report.values import NONE, minus
from lowland.report.values import plural as _plural
from lowland.runs.record import MethodRecord, RunRecord

if TYPE_CHECKING:
    from lowland.report.drawing import Look


@dataclass(frozen=True)
class Figure:
    """A drawing and its caption."""

    svg: str
    alt: str
    caption: str


def write_page(
    records: Sequence[RunRecord],
    path: str | Path,
    title: str | None = None,
    command: str | None = None,
    remarks: Sequence[str] = (),
) -> Path:
    """Write the page, whole or not at all.

    Args:
        records: runs; each task, model, label noise and budget gets a section of its own.
        path: the file to write; its folder is made.
        title: the heading, made from the records where it is left out.
        command: the command that reproduces the runs; by default the ones the runs recorded.
        remarks: sentences that the records cannot know, such as what was left out.

    Returns:
        The path written.

    Raises:
        ArgumentError: There are no records, or the file cannot be written.
    """
    target = Path(path)
    html = render(records, title=title, command=command, remarks=remarks)
    try:
        _replace(target, html)
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
        os.chmod(draft, 0o666 & ~mask)  # mkstemp makes files that only their owner may read
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
    """The page as a string; arguments as in :func:`write_page`."""
    if not records:
        raise ArgumentError("records must hold at least one run, but is empty; name the folder of a comparison")
    try:
        from jinja2 import Environment, FileSystemLoader, StrictUndefined
    except ImportError:
        raise MissingExtraError("Jinja2", "lab") from None
    from lowland.report import drawing  # here: matplotlib loads slowly, and a table needs none

    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["parts"] = re.compile(r"[^:,]*[:,]?").findall  # where a long method text may break
    environment.filters["own"] = own_recipe
    texts = [record.contestant for record in records]
    baseline = next((r.contestant for r in records if r.method.key == "plain" and "@" not in r.contestant), None)
    look = drawing.looks(texts, baseline)
    sections = [_section(group, look) for group in groups(records).values()]
    for section in sections:
        section["notes"] += remarks
    heading = title or (sections[0]["title"] if len(sections) == 1 else f"{len(sections)} comparisons")
    commands = [command] if command else sorted({r.command for r in records if r.command})
    return environment.get_template("page.html").render(
        title=heading,
        sections=sections,
        commands=commands,
        colors=list(zip(drawing.COLORS, range(1, 9), strict=True)),
        date=max(record.time for record in records)[:10],
        dash=NONE,
    )


def group_title(records: Sequence[RunRecord]) -> str:
    """The heading of one comparison: ``digits · mlp · 6 methods × 5 seeds``."""
    rows = summarize(records)
    counts = sorted({len(row.seeds) + len(row.unfinished) for row in rows})
    seeds = "–".join(map(str, dict.fromkeys((counts[0], counts[-1]))))
    size = f"{_plural(len(rows), 'method')} × {seeds} seed{'' if seeds == '1' else 's'}"
    return " · ".join(part for part in (records[0].task, records[0].model, noise_text(records[0]), size) if part)


def _section(records: Sequence[RunRecord], look: Mapping[str, Look]) -> dict[str, Any]:
    rows = summarize(records)
    shown = columns(rows)
    return {
        "title": group_title(records),
        "verdict": verdict(rows),
        "budget": budget_text(records[0]),
        "legend": legend(rows),
        "notes": list(notes(records)),
        "columns": shown,
        "rows": [(row, look[row.contestant].number, [(column, column.cell(row)) for column in shown]) for row in rows],
        "figures": _figures(chosen(records), rows, look),
        "runs": [_run(record) for record in records],
        "setting": _setting(records),
        "methods": [
            (record.contestant, record.method.cls, _fields(record.method))
            for record in {record.contestant: record for record in records}.values()
        ],
    }


def _figures(records: Sequence[RunRecord], rows: Sequence[Row], look: Mapping[str, Look]) -> list[Figure]:
    from lowland.report import figures

    band = " Bands are 95 % intervals over seeds." if any(len(row.seeds) > 1 for row in rows) else ""
    bars = "Bars are 95 % intervals over seeds; t" if band else "T"
    drawn = [
        Figure(
            figures.front(rows, look),
            "Test accuracy against the cost of a step, one point per method",
            f"Accuracy against cost. {bars}he dashed line joins the methods that no other beats in both.",
        ),
        Figure(
            figures.curves(records, rows, look),
            "Test accuracy against epochs, one line per method",
            f"Test accuracy by epoch, mean over seeds.{band} The axis leaves out the start of the training.",
        ),
        Figure(
            figures.curves(records, rows, look, over="seconds"),
            "Test accuracy against seconds, one line per method",
            f"Test accuracy by training time, evaluation excluded, at the mean time of each epoch.{band}",
        ),
        Figure(
            figures.curves(records, rows, look, value="train_loss"),
            "Training loss against epochs, one line per method",
            f"Training loss by epoch, mean over seeds.{band}",
        ),
    ]
    return [figure for figure in drawn if figure.svg]


def _setting(records: Sequence[RunRecord]) -> list[tuple[str, list[tuple[str, str]]]]:
    """Headings, each with its names and values; where runs differ, all values are given."""
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


def _fields(method: MethodRecord) -> str:
    if method.key == "plain":  # it has a radius only to be a method
        return "perturbs nothing"
    return ", ".join(f"{name} = {_value(value)}" for name, value in method.fields.items()) or "no fields"


def _run(record: RunRecord) -> dict[str, Any]:
    """One line of the table of runs; an unfinished run shows its last epoch."""
    last = {} if not record.epochs else vars(record.epochs[-1]) | {"epochs": record.epochs[-1].epoch}
    shown = last | ({} if record.end is None else vars(record.end))
    metric = record.metric
    best = None if record.end is None or record.end.best is None else record.end.best.test.get(metric.name)
    figures = [
        ("method", record.contestant),
        ("seed", str(record.seed)),
        ("epochs", _form(shown.get("epochs", 0), 1, ",.0f")),
        ("steps", _form(shown.get("step", 0), 1, ",.0f")),
        (metric.name, _form(shown.get("test", {}).get(metric.name), metric.scale, ".4g")),
        ("at best epoch", _form(best, metric.scale, ".4g")),
        ("train loss", _form(shown.get("train_loss"), 1, "#.4g")),
        ("seconds", _form(shown.get("seconds"), 1, ",.1f")),
        ("ms per step", _form(shown.get("seconds_per_step"), 1000, "#.3g")),
        ("MiB", _form(shown.get("peak_memory"), 2**-20, ",.1f")),
        ("m-sharpness", _form(shown.get("m_sharpness"), 1, "#.3g")),
        ("weights", shown.get("weights_sha256", "")[:8] or NONE),
    ]
    resumed = [f"resumed {_plural(record.resumed, 'time')}"] if record.resumed else []
    unfinished = [] if record.finished else ["unfinished"]
    return {"name": record.run, "figures": figures, "remarks": [*unfinished, *resumed, *record.warnings]}


def _form(value: float | None, unit: float, form: str) -> str:
    return NONE if value is None else minus(format(unit * value, form))
