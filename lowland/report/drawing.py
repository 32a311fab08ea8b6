"""How figures are drawn: colors, markers, canvas, and the way to inline SVG.

Colors leave as CSS variables with the light theme's color to fall back on (``var(--c1, #0072b2)``), so that one
drawing serves light, dark and paper. Text stays text, in the font of the page.
"""

from __future__ import annotations

import io
import re
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from lowland.core.errors import MissingExtraError

try:
    from matplotlib.figure import Figure
except ImportError:
    raise MissingExtraError("matplotlib", "lab") from None

if TYPE_CHECKING:
    from matplotlib.axes import Axes

INK, MUTED, LINE = "#1c2430", "#5f6b7a", "#dde2e8"
NEUTRAL = "#4a5563"  # the baseline
# Okabe and Ito's colors, the light ones darkened to carry a thin line; each has a marker of its own as well
COLORS = ("#0072b2", "#d55e00", "#009e73", "#b8529a", "#c28f00", "#3aa0dc", "#7a3b8f", "#7a7a1f")
MARKERS = ("s", "^", "D", "v", "P", "X", "h", "p")
_VARIABLES = {INK: "ink", MUTED: "muted", LINE: "line", NEUTRAL: "c0"} | {
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
    """How one method is drawn in every figure."""

    color: str
    marker: str
    number: int  # of its CSS variable


def looks(methods: Sequence[str], baseline: str | None) -> dict[str, Look]:
    """A color and a marker for each method text; the baseline is neutral."""
    others = [method for method in dict.fromkeys(methods) if method != baseline]
    found = {m: Look(COLORS[n % 8], MARKERS[(n + n // 8) % 8], n % 8 + 1) for n, m in enumerate(others)}
    return found | ({baseline: Look(NEUTRAL, "o", 0)} if baseline is not None else {})


def canvas(room: float = 0.0) -> tuple[Figure, Axes]:
    """An empty figure, of a size that reads on a phone and in two columns; ``room`` inches taller on request."""
    figure = Figure(figsize=(5.2, 3.7 + room), layout="constrained")
    return figure, figure.add_subplot()


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
