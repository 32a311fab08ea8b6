"""The figures of the loss around the final weights: spectral densities, slices and lines between minima."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from lowland.core.errors import MissingExtraError
from lowland.report.columns import value_text
from lowland.report.drawing import MUTED, STYLE, Look, break_label, canvas, label_axes, label_color, svg
from lowland.report.summary import Row
from lowland.runs import landscape
from lowland.runs.landscape import Curve
from lowland.runs.record import RunRecord

try:
    import numpy as np
    from matplotlib import rc_context
    from matplotlib.figure import Figure
    from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter, StrMethodFormatter
except ImportError:
    raise MissingExtraError("matplotlib", "lab") from None

if TYPE_CHECKING:
    from matplotlib.axes import Axes

PANELS = 3  # the planes beside each other
LEVELS = 9  # the contour lines of a plane
DEPTH = 1e-7  # the lowest density that is drawn, relative to the highest


class Drawn(NamedTuple):
    """A figure.

    Attributes:
        name: The kind of the curves.
        svg: The SVG element.
        caption: What it shows.
        wide: Whether it needs the full width of a page.
    """

    name: str
    svg: str
    caption: str
    wide: bool = False


class Shown(NamedTuple):
    """The curve of one contestant."""

    row: Row
    curve: Curve


CAPTIONS = {
    "density": "Spectral density of the Hessian at the final weights, for the run with seed {seed}: how many "
    "eigenvalues are where, smoothed by one hundredth of their range.",
    "line": "Loss along a random direction from the final weights, for the run with seed {seed}. At 1 each filter has "
    "moved by its own length.",
    "between": "Loss on the line from the final weights of the baseline, at 0, to those of the method, at 1, for the "
    "runs with seed {seed}.",
    "plane": "Contours of the loss in a plane of two random directions through the final weights (+), for the run with "
    "seed {seed}. All panels have the same levels; at 1 each filter has moved by its own length.",
}


def landscapes(records: Sequence[RunRecord], rows: Sequence[Row], look: Mapping[str, Look]) -> list[Drawn]:
    """The figures of what ``lowland sharpness`` has measured; empty if it has not.

    A figure shows one seed: the first of those that most contestants have a curve of, and only curves with equal
    settings.

    Args:
        records: The runs; their landscape files are read.
        rows: The summary of the runs, which gives the order and the labels.
        look: The colors and markers, from :func:`~lowland.report.drawing.looks`.
    """
    curves: dict[str, dict[int, dict[str, Curve]]] = {}
    for record in records:
        if record.end is not None and not record.end.diverged:
            for kind, curve in landscape.read(record.path.parent, record.end.weights_sha256).items():
                curves.setdefault(kind, {}).setdefault(record.seed, {})[record.contestant] = curve
    drawn = []
    for kind in CAPTIONS:
        seed, shown = _chosen(curves.get(kind, {}), rows)
        if shown:
            with rc_context(STYLE):
                figure = _plane(shown, look) if kind == "plane" else _lines(shown, look, kind)
                settings = ", ".join(f"{k} {value_text(v)}" for k, v in shown[0].curve.settings.items() if k != "from")
                text = f"{CAPTIONS[kind].format(seed=seed)} Measured with {settings}."
                drawn.append(Drawn(kind, svg(figure), text, wide=kind == "plane"))
    return drawn


def _chosen(by_seed: Mapping[int, Mapping[str, Curve]], rows: Sequence[Row]) -> tuple[int, list[Shown]]:
    """A seed and its curves in the order of the rows, only those with the most common settings and a finite value."""
    best: tuple[int, list[Shown]] = (0, [])
    for seed in sorted(by_seed):
        curves = {name: curve for name, curve in by_seed[seed].items() if _finite(curve).size}
        counts = Counter(_key(curve) for curve in curves.values())
        common = counts.most_common(1)[0][0] if counts else ""
        own = [row for row in rows if row.contestant in curves and _key(curves[row.contestant]) == common]
        if len(own) > len(best[1]):
            best = seed, [Shown(row, curves[row.contestant]) for row in own]
    return best


def _key(curve: Curve) -> str:
    return json.dumps(dict(curve.settings), sort_keys=True)


def _values(curve: Curve) -> Any:
    """The values as an array; what is not finite is NaN."""
    return np.array(curve.values, dtype=float)


def _axis(curve: Curve) -> Any:
    """The positions as an array; what is not finite is NaN."""
    return np.array(curve.positions, dtype=float)


def _finite(curve: Curve) -> Any:
    values = _values(curve)
    return values[np.isfinite(values)]


def _lines(shown: Sequence[Shown], look: Mapping[str, Look], kind: str) -> Figure:
    names = ["\n".join(break_label(item.row.label, 16)) for item in shown]
    right = 0.45 + 0.085 * max(len(line) for name in names for line in name.split("\n"))
    height = max(3.3, 0.75 + 0.18 * sum(name.count("\n") + 1 for name in names))
    figure, axes = canvas(4.7, height, left=0.62, right=right)
    for item, name in zip(shown, names, strict=True):
        style = look[item.row.contestant]
        axes.plot(
            _axis(item.curve), _values(item.curve), color=style.color, lw=0.9 if style.grey else 1.6, label=name,
            marker="" if style.grey or kind == "density" else style.marker, ms=3.5, markevery=4,
        )  # fmt: skip
    _scale(axes, np.concatenate([_finite(item.curve) for item in shown]), kind)
    axes.xaxis.set_major_locator(MaxNLocator(6, steps=[1, 2, 5, 10]))
    horizontal, vertical = {
        "density": ("eigenvalue", "density"),
        "line": ("position", "loss"),
        "between": ("position", "loss"),
    }[kind]
    label_axes(axes, horizontal, vertical)
    legend = axes.legend(loc="center left", bbox_to_anchor=(1.0, 0.5), fontsize=9, handlelength=1.2, labelspacing=0.35)
    for text, item in zip(legend.get_texts(), shown, strict=True):
        text.set_color(label_color(look[item.row.contestant]))
        text.set_parse_math(False)
    return figure


def _scale(axes: Axes, values: Any, kind: str) -> None:
    """A logarithmic axis for a density, and for losses that differ by more than a factor of 20."""
    top, positive = float(values.max()), values[values > 0]
    if kind == "density" and positive.size:
        axes.set_yscale("log")
        axes.set_ylim(top * DEPTH, top * 3)
        axes.yaxis.set_major_locator(LogLocator(numticks=8))
    elif positive.size == values.size and top > 20 * float(values.min()):
        axes.set_yscale("log")
        if top < 1e4 and float(values.min()) > 1e-4:
            axes.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    else:
        return
    axes.yaxis.set_minor_formatter(NullFormatter())
    axes.grid(visible=False, which="minor")


def _plane(shown: Sequence[Shown], look: Mapping[str, Look]) -> Figure:
    columns = min(PANELS, len(shown))
    lines = math.ceil(len(shown) / columns)
    figure = Figure(figsize=(9.6 * columns / PANELS, 0.35 + 3.2 * lines), layout="constrained")
    panels = figure.subplots(lines, columns, sharex=True, sharey=True, squeeze=False).ravel()
    levels = _levels(np.concatenate([_finite(item.curve) for item in shown]))
    for axes, item in zip(panels, shown, strict=False):
        style, values = look[item.row.contestant], _values(item.curve)
        axes.grid(visible=False)
        axes.set_aspect("equal")
        contours = axes.contour(
            *[_axis(item.curve)] * 2, np.ma.masked_invalid(values.T), levels=levels,
            colors=style.color, linewidths=1.0,
        )  # fmt: skip
        axes.clabel(contours, fontsize=7.5, fmt="%.2g")
        axes.plot([0], [0], marker="+", color=MUTED, ms=7, mew=1.2)
        axes.set_title(item.row.label, loc="left", fontsize=9.5, color=label_color(style), parse_math=False)
        axes.xaxis.set_major_locator(MaxNLocator(4, steps=[1, 2, 5, 10]))
        axes.yaxis.set_major_locator(MaxNLocator(4, steps=[1, 2, 5, 10]))
    for axes in panels[len(shown) :]:
        axes.set_axis_off()
    return figure


def _levels(values: Any) -> list[float]:
    """Levels of the contours, with equal ratios if all losses are positive, from the lowest to near the highest."""
    low, high = float(values.min()), float(np.quantile(values, 0.9))
    if not high > low:
        return [low]
    inner = np.geomspace(low, high, LEVELS + 1) if low > 0 else np.linspace(low, high, LEVELS + 1)
    return sorted(set(map(float, inner[1:])))
