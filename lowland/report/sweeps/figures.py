"""The figures of a sweep but the map: the history, a slice for each field, and the importance of the fields."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import median
from typing import TYPE_CHECKING

from lowland.core.errors import MissingExtraError
from lowland.report.drawing import COLORS, GREY, NEUTRAL, PAPER, STYLE, canvas, label_axes, svg
from lowland.report.values import NumberFormat, minus
from lowland.runs.record import MetricRecord
from lowland.runs.sweep import ContestantRecord, ParameterRecord, TrialRecord, number

try:
    from matplotlib import rc_context
    from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter
except ImportError:
    raise MissingExtraError("matplotlib", "lab") from None

if TYPE_CHECKING:
    from matplotlib.axes import Axes

BLUE, ORANGE = COLORS[0], COLORS[1]
FAR = 4.0  # values that are this many times farther from the best than the median are cut off, so that others differ
UNFINISHED = 0.06  # the height above the axis at which trials without a value are marked, as a fraction


def history(contestant: ContestantRecord, style: NumberFormat) -> str:
    """The SVG figure of the metric by trial, with the best so far; empty if no trial has finished."""
    points = _scored(contestant, style)
    if not points:
        return ""
    with rc_context(STYLE):
        figure, axes = canvas(5.6, 3.2, left=0.6, right=0.15)
        best, steps = points[0][1], []
        for trial, value in points:
            best = max(best, value) if style.metric.higher else min(best, value)
            steps.append((trial.number, best))
        last = contestant.trials[-1].number
        axes.step([*(n for n, _ in steps), last], [*(v for _, v in steps), best], where="post", color=ORANGE, lw=1.6)
        for trial, value in points:
            _mark(axes, trial.number, value, [v for _, v in points], style.metric)
        _limit(axes, [value for _, value in points], style.metric)
        _mark_unfinished(axes, [(trial, trial.number) for trial in contestant.trials])
        axes.set_xlim(-0.5, max(last, 1) + 0.5)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        label_axes(axes, "trial", _title(style))
        return svg(figure)


def slice_of(contestant: ContestantRecord, parameter: ParameterRecord, style: NumberFormat) -> str:
    """The SVG figure of the metric by one field; empty if no trial has finished."""
    points = _scored(contestant, style)
    if not points:
        return ""
    best = contestant.best(style.metric.higher)
    with rc_context(STYLE):
        figure, axes = canvas(5.6, 3.2, left=0.6, right=0.15)
        places = horizontal(axes, parameter)
        for trial, value in points:
            x = place_of(trial.values[parameter.name], places)
            _mark(axes, x, value, [v for _, v in points], style.metric, best=trial == best)
        _limit(axes, [value for _, value in points], style.metric)
        marks = [(t, t.values[parameter.name]) for t in contestant.trials if parameter.name in t.values]
        _mark_unfinished(axes, [(t, place_of(text, places)) for t, text in marks])
        label_axes(axes, parameter.name, _title(style))
        return svg(figure)


def shown(values: Sequence[float], metric: MetricRecord) -> tuple[float, float]:
    """The lowest and the highest value of a scale: the best value, and the worst that is not far from the others."""
    sign = 1 if metric.higher else -1
    signed = [sign * value for value in values]
    best, middle = max(signed), median(signed)
    worst = max(min(signed), middle - FAR * (best - middle)) if best > middle else min(signed)
    ends = (sign * worst, sign * best)
    return min(ends), max(ends)


def importance(shares: Mapping[str, float]) -> str:
    """The SVG figure of the share of each field in the variation of the metric; empty without an estimate."""
    if not shares:
        return ""
    ordered = sorted(shares.items(), key=lambda item: item[1])
    with rc_context(STYLE):
        wide = 0.25 + 0.085 * max(len(name) for name in shares)
        figure, axes = canvas(5.6, 0.9 + 0.34 * len(shares), left=wide, right=0.5)
        axes.barh([name for name, _ in ordered], [100 * share for _, share in ordered], color=BLUE, height=0.6)
        for place, (_, share) in enumerate(ordered):
            axes.text(100 * share + 1, place, f"{100 * share:.0f}", va="center", parse_math=False)
        axes.grid(visible=False, axis="y")
        axes.set_xlim(0, 100)
        label_axes(axes, "importance, %", "")
        return svg(figure)


def horizontal(axes: Axes, parameter: ParameterRecord, *, vertical: bool = False) -> dict[str, float]:
    """Scale an axis for a field: numbers by value or logarithm, choices in their order.

    Returns:
        The position of each choice; empty for numbers.
    """
    axis, limit, scale = (
        (axes.yaxis, axes.set_ylim, axes.set_yscale) if vertical else (axes.xaxis, axes.set_xlim, axes.set_xscale)
    )
    if parameter.low is None or parameter.high is None:
        places = {choice: float(place) for place, choice in enumerate(sorted_choices(parameter))}
        limit(-0.6, len(places) - 0.4)
        axis.set_ticks(list(places.values()), labels=list(places))
        return places
    low, high = parameter.low, parameter.high
    if parameter.log:
        scale("log")
        room = (high / low) ** 0.04
        limit(low / room, high * room)
        axis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0) if high / low < 500 else (1.0,)))
        axis.set_minor_formatter(NullFormatter())
    else:
        limit(low - 0.04 * (high - low), high + 0.04 * (high - low))
    axis.set_major_formatter(FuncFormatter(lambda value, _: minus(f"{value:g}")))
    axes.grid(visible=False, which="minor")
    return {}


def place_of(text: str, places: Mapping[str, float]) -> float:
    """The position of a value on the axis that :func:`horizontal` has scaled."""
    return places[text] if places else float(text)


def sorted_choices(parameter: ParameterRecord) -> list[str]:
    """The choices of a field, numbers by their size."""
    if parameter.numeric:
        return sorted(parameter.choices, key=lambda choice: number(choice) or 0.0)
    return list(parameter.choices)


def _scored(contestant: ContestantRecord, style: NumberFormat) -> list[tuple[TrialRecord, float]]:
    scale = style.metric.scale
    return [(trial, scale * trial.score) for trial in contestant.finished() if trial.score is not None]


def _mark(
    axes: Axes, x: float, value: float, values: Sequence[float], metric: MetricRecord, *, best: bool = False
) -> None:
    """Mark a trial; one that is far worse than the others as a triangle at the end of the scale."""
    low, high = shown(values, metric)
    inside = min(max(value, low), high)
    marker = "o" if inside == value else "v" if value < low else "^"
    size, above = (8, 4) if best else (5, 3)
    axes.plot(x, inside, marker, color=ORANGE if best else BLUE, ms=size, zorder=above, alpha=1.0 if best else 0.75)


def _limit(axes: Axes, values: Sequence[float], metric: MetricRecord) -> None:
    """Limit the vertical axis to the values, with space below for the marks of trials without a value."""
    low, high = shown(values, metric)
    room = (high - low) * 0.12 or abs(high) * 0.02 or 1.0
    axes.set_ylim(max(low - 1.6 * room, metric.bounds[0] - 1.6 * room), high + room)


def _mark_unfinished(axes: Axes, trials: Sequence[tuple[TrialRecord, float]]) -> None:
    """Mark trials without a value near the horizontal axis: hollow if pruned, a cross if diverged or refused."""
    transform = axes.get_xaxis_transform()
    for trial, place in trials:
        if trial.score is None and trial.outcome != "running":
            pruned = trial.outcome == "pruned"
            axes.plot(
                place,
                UNFINISHED,
                "o" if pruned else "x",
                color=GREY if pruned else NEUTRAL,
                mfc=PAPER,
                ms=5,
                transform=transform,
                zorder=3,
            )


def _title(style: NumberFormat) -> str:
    return style.titled(f"validation {style.metric.name}", style.unit)
