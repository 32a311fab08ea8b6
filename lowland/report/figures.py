"""The figures of a report as inline SVG: learning curves, and the front of accuracy against cost."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Literal

from lowland.core.errors import MissingExtraError
from lowland.report.drawing import MUTED, STYLE, Look, canvas, svg
from lowland.report.summary import Row
from lowland.runs.record import ACCURACY, EpochRecord, MetricRecord, RunRecord
from lowland.runs.statistics import Estimate, estimate

try:
    from matplotlib import rc_context
    from matplotlib.ticker import MaxNLocator, NullFormatter, StrMethodFormatter
except ImportError:
    raise MissingExtraError("matplotlib", "lab") from None

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


def curves(
    records: Sequence[RunRecord],
    rows: Sequence[Row],
    look: Mapping[str, Look],
    *,
    value: Literal["test", "train_loss"] = "test",
    over: Literal["epoch", "seconds"] = "epoch",
) -> str:
    """Mean over seeds with its 95 % band, epoch by epoch; empty where nothing was recorded.

    Args:
        records: the runs; unfinished ones are left out.
        rows: their summary, which gives order and labels.
        look: from :func:`~lowland.report.drawing.looks`.
        value: what is drawn.
        over: the horizontal axis; seconds are the mean time at which the seeds reached the epoch.
    """
    metric = rows[0].metric if rows else ACCURACY
    scale = metric.scale if value == "test" else 1
    lines = {row.label: (_line(records, row.contestant, value, over, scale), look[row.contestant]) for row in rows}
    lines = {label: (points, style) for label, (points, style) in lines.items() if points}
    if not lines:
        return ""
    with rc_context(STYLE):
        figure, axes = canvas(room=0.19 * max(0, -(-len(lines) // _columns(list(lines))) - 2))  # for a tall legend
        for turn, (label, (points, style)) in enumerate(lines.items()):
            _draw(axes, label, points, style, turn)
        means = [[mean.mean for _, mean in points] for points, _ in lines.values()]
        if value == "test":
            _zoom(axes, means, [b for points, _ in lines.values() for _, mean in points for b in _bounds(mean)])
        else:
            _scale_losses(axes, [mean for line in means for mean in line])
        axes.xaxis.set_major_locator(MaxNLocator(8, steps=[1, 2, 5, 10], integer=over == "epoch"))
        axes.set_xlabel("epoch" if over == "epoch" else "seconds of training")
        axes.set_ylabel(_axis(metric) if value == "test" else "training loss")
        axes.set_xlim(left=0 if over == "seconds" else min(points[0][0] for points, _ in lines.values()))
        _legend(figure, list(lines))
        return svg(figure)


def front(rows: Sequence[Row], look: Mapping[str, Look]) -> str:
    """Accuracy with its interval against the cost of a step, and the line of those no other dominates."""
    label, cost = cost_axis(rows)
    points = [(cost[row.contestant], row.score, row) for row in rows if row.score and row.contestant in cost]
    if not points:
        return ""
    with rc_context(STYLE):
        figure, axes = canvas(room=0.16 * max(0, len(points) - 8))  # for many labels
        best = pareto([(x, accuracy.mean) for x, accuracy, _ in points])
        axes.plot(
            [x for x, _ in best],
            [100 * y for _, y in best],
            color=MUTED,
            lw=1,
            ls=(0, (4, 3)),
            drawstyle="steps-post",
        )
        for x, accuracy, row in points:
            style = look[row.contestant]
            half = None if accuracy.half is None else 100 * accuracy.half
            axes.errorbar(
                x,
                100 * accuracy.mean,
                yerr=half,
                color=style.color,
                fmt=style.marker,
                ms=6.5,
                lw=1.4,
                capsize=3,
            )
        axes.margins(x=0.16, y=0.12)
        axes.locator_params(axis="x", nbins=6)
        axes.set_xlabel(label)
        axes.set_ylabel(_axis(rows[0].metric))
        _name(figure, axes, [(x, accuracy, row.label) for x, accuracy, row in points], best)
        return svg(figure)


def cost_axis(rows: Sequence[Row]) -> tuple[str, dict[str, float]]:
    """The cost that all finished rows share: relative time, else seconds, else gradients per step."""
    finished = [row for row in rows if row.score]
    axes: list[tuple[str, str, float]] = [
        ("time", "time per step, × plain", 1.0),
        ("seconds", "time per step, ms", 1000.0),
        ("gradients", "gradients per step", 1.0),
    ]
    base = next((row.label for row in rows if row.baseline), "plain")
    for name, label, unit in axes:
        values = {row.contestant: getattr(row, name) for row in finished}
        if values and None not in values.values():
            return label.replace("plain", base), {method: unit * value for method, value in values.items()}
    return "", {}


def pareto(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """The (cost, accuracy) points that no other beats in one without losing in the other, by cost.

    Example:
        >>> pareto([(2.0, 0.9), (1.0, 0.8), (3.0, 0.85)])
        [(1.0, 0.8), (2.0, 0.9)]
    """
    kept: list[tuple[float, float]] = []
    for point in sorted(set(points), key=lambda point: (point[0], -point[1])):
        if not kept or point[1] > kept[-1][1]:
            kept.append(point)
    return kept


def _line(
    records: Sequence[RunRecord], method: str, value: str, over: str, scale: float
) -> list[tuple[float, Estimate]]:
    """Points of one method at the epochs that all its finished seeds recorded."""
    runs_metric = next((r.metric.name for r in records), "")
    runs = [{e.epoch: e for e in r.epochs} for r in records if r.finished and r.contestant == method]
    shared = sorted(set.intersection(*(set(run) for run in runs))) if runs else []
    points = []
    for number in shared:
        epochs: list[EpochRecord] = [run[number] for run in runs]
        values = [epoch.test.get(runs_metric) if value == "test" else epoch.train_loss for epoch in epochs]
        places = [getattr(epoch, over) for epoch in epochs]
        mean = None if None in values + places else estimate(scale * v for v in values if v is not None)
        if mean is not None:
            points.append((sum(places) / len(places), mean))
    return points


def _axis(metric: MetricRecord) -> str:
    return f"test {metric.name}" + (f", {metric.unit}" if metric.unit else "")


def _bounds(mean: Estimate) -> tuple[float, float]:
    return mean.mean - (mean.half or 0), mean.mean + (mean.half or 0)


def _draw(axes: Axes, label: str, points: list[tuple[float, Estimate]], style: Look, turn: int) -> None:
    x = [place for place, _ in points]
    every = max(1, len(points) // 5)
    axes.plot(
        x,
        [mean.mean for _, mean in points],
        color=style.color,
        lw=1.7,
        marker=style.marker,
        ms=4.5,
        markevery=(min(turn * every // 6, len(points) - 1), every),
        label=label,
        zorder=3,
    )
    if all(mean.half is not None for _, mean in points):
        low, high = zip(*(_bounds(mean) for _, mean in points), strict=True)
        axes.fill_between(x, low, high, color=style.color, alpha=0.13, lw=0)


def _zoom(axes: Axes, means: list[list[float]], bounds: list[float]) -> None:
    """Show where the methods part: the axis starts below their accuracies after a third of the training."""
    settled = [min(line[len(line) // 3 :]) for line in means]
    low, high = min(settled), max(bound for bound in bounds if bound <= max(map(max, means)) + 5)
    room = max(high - low, 0.5) * 0.06
    axes.set_ylim(max(0.0, low - room), min(100.0, high + room) + room / 3)


def _scale_losses(axes: Axes, means: list[float]) -> None:
    if min(means) > 0 and max(means) > 20 * min(means):
        axes.set_yscale("log")
        axes.set_ylim(min(means) / 1.4, max(means) * 1.4)
        axes.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
        axes.yaxis.set_minor_formatter(NullFormatter())
        axes.grid(visible=False, which="minor")


def _legend(figure: Figure, labels: list[str]) -> None:
    legend = figure.legend(
        loc="outside lower center", ncols=_columns(labels), columnspacing=1.4, handlelength=1.8, handletextpad=0.5
    )
    for text in legend.get_texts():
        text.set_parse_math(False)  # a name from a file is a name, not a formula


def _columns(labels: list[str]) -> int:
    """How many entries of the legend stand side by side."""
    return max(1, min(4, 60 // (max(map(len, labels)) + 7), len(labels)))


def _name(
    figure: Figure, axes: Axes, points: list[tuple[float, Estimate, str]], steps: list[tuple[float, float]]
) -> None:
    """Write each label at the nearest place around its point where it meets nothing else."""
    figure.draw_without_rendering()
    dpi = figure.dpi / 72
    to_pixels, frame = axes.transData.transform, axes.get_window_extent()
    taken: list[tuple[float, float, float, float]] = []
    for x, accuracy, _ in points:
        low, high = (to_pixels((x, 100 * bound))[1] for bound in _bounds(accuracy))
        middle, y = to_pixels((x, 100 * accuracy.mean))
        taken += [(middle - 3 * dpi, low, middle + 3 * dpi, high), _box(middle, y, 9 * dpi, 9 * dpi)]
    for (left, low), (right, high) in pairwise(to_pixels((x, 100 * y)) for x, y in steps):
        taken += [(left, low - dpi, right, low + dpi), (right - dpi, low, right + dpi, high)]
    for x, accuracy, label in points:
        px, py = to_pixels((x, 100 * accuracy.mean))
        width, height = len(label) * 6.0 * dpi, 11.5 * dpi
        beside = [(side * (width / 2 + 7 * dpi), rise * height) for rise in (0, 0.8, -0.8) for side in (1, -1)]
        low, high = (to_pixels((x, 100 * bound))[1] - py for bound in _bounds(accuracy))
        ends = [(0, high + 0.8 * height), (0, low - 0.8 * height)]  # above and below the bar
        far = [(side * (width / 2 + 7 * dpi), rise * height) for rise in (1.6, -1.6, 2.4, -2.4) for side in (1, -1)]
        reach = beside + ends + far
        places = [_box(px + dx, py + dy, width, height) for dx, dy in reach]
        inside = [p for p in places if p[0] > frame.x0 and p[2] < frame.x1 and p[1] > frame.y0 and p[3] < frame.y1]
        box = min(inside or places, key=lambda place: sum(_overlap(place, other) for other in taken))
        taken.append(box)
        middle, y = axes.transData.inverted().transform(((box[0] + box[2]) / 2, (box[1] + box[3]) / 2))
        axes.text(middle, y, label, ha="center", va="center", parse_math=False, zorder=5)


def _box(x: float, y: float, width: float, height: float) -> tuple[float, float, float, float]:
    return x - width / 2, y - height / 2, x + width / 2, y + height / 2


def _overlap(a: tuple[float, ...], b: tuple[float, ...]) -> float:
    return max(0.0, min(a[2], b[2]) - max(a[0], b[0])) * max(0.0, min(a[3], b[3]) - max(a[1], b[1]))
