"""What all figures share: colors, markers, an empty figure with axes, and the conversion to inline SVG.

The SVG names colors as CSS variables, with the light theme's color as the fallback (``var(--c1, #0072b2)``), so one
drawing serves the light theme, the dark theme and paper. Text stays text, in the font of the page.
"""

from __future__ import annotations

import io
import math
import re
import textwrap
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from lowland.core.errors import MissingExtraError
from lowland.report.summary import Row
from lowland.report.values import NumberFormat

try:
    from matplotlib.figure import Figure
except ImportError:
    raise MissingExtraError("matplotlib", "lab") from None

if TYPE_CHECKING:
    from matplotlib.axes import Axes

INK, MUTED, LINE = "#1c2430", "#5f6b7a", "#dde2e8"
NEUTRAL = "#4a5563"  # the baseline
PAPER = "#ffffff"  # the inside of hollow marks
GREY = "#98a2ae"  # contestants without a color of their own
# Okabe and Ito's colors; the light ones are darker, so that thin lines stay visible. Each color has its own marker.
COLORS = ("#0072b2", "#d55e00", "#009e73", "#b8529a", "#c28f00", "#3aa0dc", "#7a3b8f", "#7a7a1f")
MARKERS = ("s", "^", "D", "v", "P", "X", "h", "p")
LINE_PT = 11.5  # the height of a line of text, in points
_VARIABLES = {INK: "ink", MUTED: "muted", LINE: "line", NEUTRAL: "c0", GREY: "c9", PAPER: "paper"} | {
    color: f"c{n}" for n, color in enumerate(COLORS, 1)
}
STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "lowland",
    "font.family": "DejaVu Sans",  # labels are measured in this wide font, so they do not overlap in narrower ones
    "font.size": 9.5,
    "text.color": INK,
    "axes.labelcolor": MUTED,
    "axes.edgecolor": MUTED,
    "axes.linewidth": 0.8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": LINE,
    "grid.linewidth": 0.8,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "legend.frameon": False,
    "lines.solid_capstyle": "round",
}


@dataclass(frozen=True)
class Look:
    """The color and the marker of one contestant in all figures.

    Args:
        color: The color, in hexadecimal.
        marker: The marker, as matplotlib names it.
        number: The number of the CSS variable of the color: 0 for the baseline, 9 for grey.
    """

    color: str
    marker: str
    number: int

    @property
    def grey(self) -> bool:
        """Whether the contestant is grey, because it has no color of its own."""
        return self.color == GREY


def looks(rows: Sequence[Row]) -> dict[str, Look]:
    """A color and a marker for each contestant; the baseline is dark grey.

    There are eight colors. If more contestants are compared with the baseline, the eight with the largest gains get a
    color, or without a baseline the eight with the best scores.
    """
    others = sorted((row for row in rows if not row.baseline), key=_best_first)
    colored = {row.contestant for row in others[: len(COLORS)]}
    styles = {row.contestant: Look(NEUTRAL, "o", 0) for row in rows if row.baseline}
    for row in rows:
        if row.contestant in colored:
            n = len(styles) - any(row.baseline for row in rows)
            styles[row.contestant] = Look(COLORS[n], MARKERS[n], n + 1)
    return {row.contestant: styles.get(row.contestant, Look(GREY, "o", 9)) for row in rows}


def canvas(width: float, height: float, *, left: float, right: float) -> tuple[Figure, Axes]:
    """An empty figure with space for a title above its axes and a label below them.

    Args:
        width: The width of the figure in inches.
        height: The height of the figure in inches.
        left: The space for the numbers of the vertical axis, in inches.
        right: The space on the right of the axes, in inches.
    """
    figure = Figure(figsize=(width, height))
    top, bottom = 0.3, 0.45
    place = (left / width, bottom / height, (width - left - right) / width, (height - top - bottom) / height)
    return figure, figure.add_axes(place)


def label_axes(axes: Axes, horizontal: str, vertical: str) -> None:
    """Name the axes; the name of the vertical axis is horizontal text above it."""
    axes.set_xlabel(horizontal, parse_math=False)
    place = axes.get_position()
    edge = 0.01 - place.x0 / place.width  # the left edge of the figure, in coordinates of the axes
    axes.set_title(vertical, loc="left", fontsize=9.5, color=MUTED, pad=9, x=edge, parse_math=False)


def _best_first(row: Row) -> float:
    """The key that sorts rows from the best to the worst."""
    if row.difference is not None:
        return -row.difference.mean
    if row.score is None:
        return math.inf
    return -row.score.mean if row.metric.higher else row.score.mean


def score_title(style: NumberFormat) -> str:
    """The title of an axis that shows the headline metric on the test set."""
    return style.titled(f"test {style.metric.name}", style.unit)


def label_color(style: Look) -> str:
    """The color of a label: the color of its mark, except that labels of grey marks are darker."""
    return MUTED if style.grey else style.color


def break_label(label: str, width: int) -> list[str]:
    """The lines of a label of at most ``width`` characters; lines break after colons and commas and before @."""
    spaced = label.replace(":", ": ").replace(",", ", ").replace("@", " @")
    return [line.replace(" ", "") for line in textwrap.wrap(spaced, width, break_on_hyphens=False)] or [label]


def svg(figure: Figure) -> str:
    """A figure as an SVG element with CSS variables as colors, unique identifiers, and no links to other servers."""
    buffer = io.StringIO()
    no_metadata: dict[str, Any] = dict.fromkeys(("Date", "Creator", "Format", "Type"))
    figure.savefig(buffer, format="svg", transparent=True, metadata=no_metadata)
    text = buffer.getvalue()
    text = text[text.index("<svg") :].strip()
    head, body = text.split(">", 1)
    text = re.sub(r' (width|height)="[^"]*"', "", head) + ">" + body  # the page sets the size
    text = re.sub(r"<!--.*?-->\n?", "", text, flags=re.DOTALL)
    name = f"f{zlib.crc32(text.encode()):08x}"  # unique, because one page has several drawings
    text = re.sub(r'\bid="', f'id="{name}-', text)
    text = re.sub(r'(href="#|url\(#)', rf"\g<1>{name}-", text)
    text = re.sub(r"'DejaVu Sans'[^;\"]*", "var(--font, sans-serif)", text)
    return re.sub("|".join(_VARIABLES), lambda match: f"var(--{_VARIABLES[match[0]]}, {match[0]})", text)
