"""The map of a sweep over two numeric fields, such as rho and lam: cells of a grid, or colored points."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

from lowland.core.errors import MissingExtraError
from lowland.report.drawing import INK, MUTED, NEUTRAL, PAPER, STYLE, label_axes, svg
from lowland.report.sweeps.figures import horizontal, place_of, shown, sorted_choices
from lowland.report.values import NumberFormat
from lowland.runs.sweep import ContestantRecord, ParameterRecord, TrialRecord

try:
    from matplotlib import rc_context
    from matplotlib.colors import LinearSegmentedColormap, Normalize
    from matplotlib.figure import Figure
    from matplotlib.patches import Rectangle
except ImportError:
    raise MissingExtraError("matplotlib", "lab") from None

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# From light to dark, readable in print and without color; both themes show the same colors.
MAP = LinearSegmentedColormap.from_list("lowland", ["#f3efe2", "#a9d3c4", "#4ba3a8", "#1f6f94", "#16365f"])
LIGHT, DARK = "#fdfdfd", "#10202f"  # text on cells
STEPS = 24  # of the color bar


class Cell(NamedTuple):
    """A place on the map: its values, its score for display (None without one), and why there is none."""

    x: str
    y: str
    score: float | None
    outcome: str
    best: bool


def axes_of(contestant: ContestantRecord) -> tuple[ParameterRecord, ParameterRecord] | None:
    """The two numeric fields of the map, the most important ones first; None if there are not two."""
    numeric = [each for each in contestant.parameters if each.numeric]
    if len(numeric) < 2:
        return None
    if len(numeric) > 2 and contestant.importance:
        numeric.sort(key=lambda each: -contestant.importance.get(each.name, 0.0))
    chosen = [each for each in contestant.parameters if each in numeric[:2]]  # in the order of the text
    return chosen[0], chosen[1]


def map_of(contestant: ContestantRecord, style: NumberFormat) -> str:
    """The SVG figure of the metric over two fields; empty without two numeric fields or without finished trials."""
    pair = axes_of(contestant)
    if pair is None or not contestant.finished():
        return ""
    cells = _cells(contestant, pair, style)
    scores = [cell.score for cell in cells if cell.score is not None]
    low, high = shown(scores, style.metric)
    norm = Normalize(low, high if high > low else low + 1, clip=True)
    with rc_context(STYLE):
        if is_grid(contestant, pair):
            columns, rows = (sorted_choices(each) for each in pair)
            figure, axes = _frame(0.92 * len(columns), 0.46 * len(rows))
            _draw_cells(axes, cells, columns, rows, norm, style)
        else:
            figure, axes = _frame(6.4, 3.9)
            _draw_points(axes, cells, pair, norm, style)
        label_axes(axes, pair[0].name, pair[1].name)
        cut = low > min(scores) or high < max(scores)
        _draw_bar(figure, axes, (low, high), style, cut=cut)
        return svg(figure)


def is_grid(contestant: ContestantRecord, pair: tuple[ParameterRecord, ParameterRecord]) -> bool:
    """Whether both fields have choices, so that the map has cells."""
    return all(each.choices for each in pair)


def _cells(
    contestant: ContestantRecord, pair: tuple[ParameterRecord, ParameterRecord], style: NumberFormat
) -> list[Cell]:
    """The trials as places; of several trials at the same place the best one, whatever the other fields are."""
    x, y = (each.name for each in pair)
    best, sign = contestant.best(style.metric.higher), 1 if style.metric.higher else -1
    places: dict[tuple[str, str], TrialRecord] = {}

    def rank(trial: TrialRecord) -> tuple[bool, bool, float]:
        return trial == best, trial.score is not None, sign * (trial.score or 0.0)

    for trial in contestant.trials:
        if x not in trial.values or y not in trial.values or trial.outcome == "running":
            continue
        place = (trial.values[x], trial.values[y])
        if place not in places or rank(trial) > rank(places[place]):
            places[place] = trial
    scale = style.metric.scale
    return [
        Cell(*place, None if trial.score is None else scale * trial.score, trial.outcome, trial == best)
        for place, trial in places.items()
    ]


def _frame(width: float, height: float) -> tuple[Figure, Axes]:
    """A figure whose axes have this size in inches, with space for a color bar on the right."""
    width, height = max(width, 2.4), max(height, 0.9)
    left, right, top, bottom = 0.75, 1.65, 0.32, 0.5
    figure = Figure(figsize=(left + width + right, top + height + bottom))
    whole = (left + width + right, top + height + bottom)
    return figure, figure.add_axes((left / whole[0], bottom / whole[1], width / whole[0], height / whole[1]))


def _draw_cells(
    axes: Axes, cells: Sequence[Cell], columns: Sequence[str], rows: Sequence[str], norm: Normalize, style: NumberFormat
) -> None:
    across: Mapping[str, int] = {text: place for place, text in enumerate(columns)}
    upward: Mapping[str, int] = {text: place for place, text in enumerate(rows)}
    axes.grid(visible=False)
    for cell in cells:
        x, y = across[cell.x], upward[cell.y]
        color = "none" if cell.score is None else MAP(_depth(cell.score, norm, style))
        axes.add_patch(Rectangle((x - 0.48, y - 0.46), 0.96, 0.92, facecolor=color, edgecolor="none", zorder=2))
        text = cell.outcome if cell.score is None else style.value(cell.score / style.metric.scale)
        ink = MUTED if cell.score is None else LIGHT if _depth(cell.score, norm, style) > 0.5 else DARK
        axes.text(
            x, y, text, ha="center", va="center", color=ink, fontsize=8.5, zorder=4, parse_math=False,
            fontweight="bold" if cell.best else "normal", gid=f"cell-{x}-{y}",
        )  # fmt: skip
    for cell in (cell for cell in cells if cell.best):
        corner = (across[cell.x] - 0.48, upward[cell.y] - 0.46)
        axes.add_patch(Rectangle(corner, 0.96, 0.92, facecolor="none", edgecolor=INK, lw=2.2, zorder=5))
    axes.set_xticks(range(len(columns)), labels=columns)
    axes.set_yticks(range(len(rows)), labels=rows)
    axes.tick_params(length=0)
    axes.set_xlim(-0.5, len(columns) - 0.5)
    axes.set_ylim(-0.5, len(rows) - 0.5)
    for spine in axes.spines.values():
        spine.set_visible(False)


def _draw_points(
    axes: Axes,
    cells: Sequence[Cell],
    pair: tuple[ParameterRecord, ParameterRecord],
    norm: Normalize,
    style: NumberFormat,
) -> None:
    across = horizontal(axes, pair[0])
    upward = horizontal(axes, pair[1], vertical=True)
    for cell in sorted(cells, key=lambda cell: cell.best):
        x, y = place_of(cell.x, across), place_of(cell.y, upward)
        if cell.score is None:
            hollow = cell.outcome == "pruned"
            axes.plot(x, y, "o" if hollow else "x", color=NEUTRAL, mfc=PAPER, ms=6, clip_on=False, zorder=2)
            continue
        depth = _depth(cell.score, norm, style)
        axes.plot(
            x, y, "o", color=MAP(depth), mec=INK if cell.best else NEUTRAL, mew=2.4 if cell.best else 0.7,
            ms=13 if cell.best else 9.5, clip_on=False, zorder=4 if cell.best else 3,
        )  # fmt: skip


def _depth(score: float, norm: Normalize, style: NumberFormat) -> float:
    """The depth of a cell's color: darker is better."""
    depth = float(norm(score))
    return depth if style.metric.higher else 1 - depth


def _draw_bar(figure: Figure, axes: Axes, ends: tuple[float, float], style: NumberFormat, *, cut: bool) -> None:
    """The color bar: the worst value at the bottom, the best at the top; ``cut`` if some values are worse."""
    place = axes.get_position()
    wide = 0.16 / figure.get_figwidth()
    bar = figure.add_axes((place.x1 + 2 * wide, place.y0, wide, place.height))
    for step in range(STEPS):
        color = MAP((step + 0.5) / STEPS)
        bar.add_patch(Rectangle((0, step / STEPS), 1, 1 / STEPS + 0.004, facecolor=color, edgecolor="none"))
    bar.set_xlim(0, 1)
    bar.set_ylim(0, 1)
    bar.set_xticks([])
    bar.grid(visible=False)
    bar.yaxis.tick_right()
    worst, best = ends if style.metric.higher else ends[::-1]
    scale = style.metric.scale
    labels = [style.value((worst + share * (best - worst)) / scale) for share in (0.0, 0.5, 1.0)]
    if cut:
        labels[0] += " or worse"
    bar.set_yticks([0.0, 0.5, 1.0] if worst != best else [0.5], labels=labels if worst != best else labels[:1])
    bar.tick_params(length=0)
    for spine in bar.spines.values():
        spine.set_visible(False)
