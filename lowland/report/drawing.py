"""How figures are drawn: colors, markers, canvas, and the way to inline SVG.

Colors leave as CSS variables with the light theme's color to fall back on (``var(--c1, #0072b2)``), so that one
drawing serves light, dark and paper. Text stays text, in the font of the page.
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
from lowland.report.values import Form

try:
    from matplotlib.figure import Figure
except ImportError:
    raise MissingExtraError("matplotlib", "lab") from None

if TYPE_CHECKING:
    from matplotlib.axes import Axes

INK, MUTED, LINE = "#1c2430", "#5f6b7a", "#dde2e8"
NEUTRAL = "#4a5563"  # the baseline
PAPER = "#ffffff"  # inside of hollow marks
GREY = "#98a2ae"  # all that have no color of their own
# Okabe and Ito's colors, the light ones darkened to carry a thin line; each has a marker of its own as well
COLORS = ("#0072b2", "#d55e00", "#009e73", "#b8529a", "#c28f00", "#3aa0dc", "#7a3b8f", "#7a7a1f")
MARKERS = ("s", "^", "D", "v", "P", "X", "h", "p")
LINE_PT = 11.5  # height of a line of text, in points
_VARIABLES = {INK: "ink", MUTED: "muted", LINE: "line", NEUTRAL: "c0", GREY: "c9", PAPER: "paper"} | {
    color: f"c{n}" for n, color in enumerate(COLORS, 1)
}
STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "lowland",
    "font.family": "DejaVu Sans",  # measured in it; wider than most, so that nothing overlaps in another font
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
    """How one contestant is drawn in every figure."""

    color: str
    marker: str
    number: int  # of its CSS variable; 0 is the baseline, 9 the grey of many

    @property
    def grey(self) -> bool:
        """Whether it shares the grey of all that have no color of their own."""
        return self.color == GREY


def looks(rows: Sequence[Row]) -> dict[str, Look]:
    """A color and a marker for each contestant; the baseline is neutral.

    Of more than eight others, those with the largest gains have a color, or the best scores where there is no baseline.
    """
    others = sorted((row for row in rows if not row.baseline), key=_promise)
    colored = {row.contestant for row in others[: len(COLORS)]}
    found = {row.contestant: Look(NEUTRAL, "o", 0) for row in rows if row.baseline}
    for row in rows:
        if row.contestant in colored:
            n = len(found) - any(row.baseline for row in rows)
            found[row.contestant] = Look(COLORS[n], MARKERS[n], n + 1)
    return {row.contestant: found.get(row.contestant, Look(GREY, "o", 9)) for row in rows}


def canvas(width: float, height: float, *, left: float, right: float) -> tuple[Figure, Axes]:
    """An empty figure with room for a title above and a label below.

    Args:
        width: Of the figure, in inches.
        height: Of the figure, in inches.
        left: Room for the numbers of the vertical axis, in inches.
        right: Room beside the axes, in inches.
    """
    figure = Figure(figsize=(width, height))
    top, bottom = 0.3, 0.45
    place = (left / width, bottom / height, (width - left - right) / width, (height - top - bottom) / height)
    return figure, figure.add_axes(place)


def label_axes(axes: Axes, horizontal: str, vertical: str) -> None:
    """Name the axes; the vertical one's name stands above it, where it is read without turning the head."""
    axes.set_xlabel(horizontal, parse_math=False)
    place = axes.get_position()
    edge = 0.01 - place.x0 / place.width  # of the figure
    axes.set_title(vertical, loc="left", fontsize=9.5, color=MUTED, pad=9, x=edge, parse_math=False)


def _promise(row: Row) -> float:
    if row.difference is not None:
        return -row.difference.mean
    if row.score is None:
        return math.inf
    return -row.score.mean if row.metric.higher else row.score.mean


def score_title(style: Form) -> str:
    """What the headline metric on the test set is called on an axis."""
    return style.titled(f"test {style.metric.name}", style.unit)


def ink(style: Look) -> str:
    """The color of a label: that of its mark, but never as light as the grey."""
    return MUTED if style.grey else style.color


def broken(label: str, width: int) -> list[str]:
    """A label in lines, broken after colons and commas and before @."""
    spaced = label.replace(":", ": ").replace(",", ", ").replace("@", " @")
    return [line.replace(" ", "") for line in textwrap.wrap(spaced, width, break_on_hyphens=False)] or [label]


def svg(figure: Figure) -> str:
    """The drawing as an SVG element: colors as variables, identifiers of its own, no foreign addresses."""
    buffer = io.StringIO()
    nothing: dict[str, Any] = dict.fromkeys(("Date", "Creator", "Format", "Type"))
    figure.savefig(buffer, format="svg", transparent=True, metadata=nothing)
    text = buffer.getvalue()
    text = text[text.index("<svg") :].strip()
    head, body = text.split(">", 1)
    text = re.sub(r' (width|height)="[^"]*"', "", head) + ">" + body  # the page decides
    text = re.sub(r"<!--.*?-->\n?", "", text, flags=re.DOTALL)
    name = f"f{zlib.crc32(text.encode()):08x}"  # several drawings share a page
    text = re.sub(r'\bid="', f'id="{name}-', text)
    text = re.sub(r'(href="#|url\(#)', rf"\g<1>{name}-", text)
    text = re.sub(r"'DejaVu Sans'[^;\"]*", "var(--font, sans-serif)", text)
    return re.sub("|".join(_VARIABLES), lambda match: f"var(--{_VARIABLES[match[0]]}, {match[0]})", text)
