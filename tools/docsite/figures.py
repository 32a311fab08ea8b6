"""The figures of the generated pages: the passes of ten steps, and the costs of all methods on common axes."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from matplotlib import rc_context
from matplotlib.patches import Rectangle

from docsite.trace import SHOWN, length, span, steps_of
from lowland.cli.methods import by_cost
from lowland.planner.asks import Pass
from lowland.planner.costs import Costs
from lowland.report.drawing import COLORS, GREY, LINE, MUTED, PAPER, STYLE, canvas, label_axes, svg

if TYPE_CHECKING:
    from matplotlib.axes import Axes

AT_WEIGHTS, DISPLACED, FORWARD = COLORS[0], COLORS[1], GREY
LONGEST = 2 * SHOWN  # the common axis of all methods: ten steps of SAM
HEIGHT = 0.34  # of a row, in inches


def steps_figure(key: str) -> str:
    """The passes of ten steps of a method, one row for each device that computes at the same time."""
    first, steps = steps_of(key)
    rows = max(len(together) for step in steps for together in step)
    with rc_context(STYLE):
        figure, axes = canvas(9.6, 0.98 + HEIGHT * rows, left=0.72, right=0.12)
        axes.set_xlim(-0.06, LONGEST + 0.06)
        axes.set_ylim(-rows + 0.02, 0.02)
        axes.grid(visible=False)
        axes.spines["left"].set_visible(False)
        axes.set_xticks(range(0, LONGEST + 1, 2))
        names = [f"device {n}" for n in range(1, rows + 1)] if rows > 1 else ["passes"]
        axes.set_yticks([-n - 0.5 for n in range(rows)], names)
        axes.tick_params(axis="y", length=0)
        start = 0.0
        for number, step in enumerate(steps, first):
            axes.text(start + length(step) / 2, 0.12, str(number), ha="center", va="bottom", fontsize=8.5, color=MUTED)
            for together in step:
                for row, one in enumerate(together):
                    _draw(axes, one, start, row)
                start += max(span(one) for one in together)
            axes.axvline(start, color=MUTED, lw=0.8, ymin=0, ymax=1, zorder=1)
        label_axes(axes, "time, in gradients of the full batch", "")
        return _framed(svg(figure), f"The passes of {len(steps)} steps of {key}")


def _draw(axes: Axes, one: Pass, start: float, row: int) -> None:
    """A pass as a box: filled as far as it differentiates the tensors; grey if it is a forward pass."""
    color = FORWARD if not one.tensors else DISPLACED if one.displaced else AT_WEIGHTS
    low, high, gap = -row - 0.9, 0.8, 0.035
    place, width = start + gap, span(one) - 2 * gap
    axes.add_patch(Rectangle((place, low), width, high * (one.tensors or 1.0), facecolor=color, lw=0, zorder=3))
    axes.add_patch(Rectangle((place, low), width, high, fill=False, edgecolor=color, lw=1.0, zorder=4))


def costs_figure() -> str:
    """Gradients per step and memory of all methods on common axes, the cheapest first."""
    costs = by_cost()
    with rc_context(STYLE):
        figure, axes = canvas(9.6, 0.9 + 0.235 * len(costs), left=1.15, right=4.1)
        place = axes.get_position()
        memory = figure.add_axes((1 - 3.85 / 9.6, place.y0, 3.7 / 9.6, place.height), sharey=axes)
        for row, cost in enumerate(costs.values()):
            _draw_costs(axes, memory, -row, cost)
        axes.set_yticks([-row for row in range(len(costs))], list(costs))
        axes.set_ylim(0.7 - len(costs), 0.7)
        axes.set_xlim(0.85, 2.1)
        memory.set_xlim(-0.15, 1.05 * max(cost.peak for cost in costs.values()) + 0.1)
        for one in (axes, memory):
            one.tick_params(axis="y", length=0)
            one.spines["left"].set_visible(False)
        memory.tick_params(axis="y", labelleft=False)
        label_axes(axes, "gradients per step", "")
        label_axes(memory, "memory beyond plain training, in multiples of the parameters", "")
        return _framed(svg(figure), "Gradients per step and memory of all methods")


def _draw_costs(axes: Axes, memory: Axes, y: float, cost: Costs) -> None:
    """One row: filled marks for all gradients and the peak memory; hollow ones for smaller parts of them."""
    pairs = ((axes, cost.sequential + cost.forwards / 3, cost.price, "o"), (memory, cost.resident, cost.peak, "s"))
    for panel, part, total, marker in pairs:
        panel.plot([part, total], [y, y], color=LINE, lw=2.5, zorder=2)
        panel.plot(total, y, marker, color=DISPLACED, ms=6, zorder=3)
        if total - part > 0.01:
            panel.plot(part, y, marker, mfc=PAPER, mec=AT_WEIGHTS, mew=1.6, ms=6, zorder=4)


def _framed(text: str, label: str) -> str:
    """The drawing on one line, as Markdown needs it, inside an element that scrolls where the page is narrow."""
    line = re.sub(r">\s+<", "><", text).replace("\n", " ")
    return f'<div class="figure" role="img" aria-label="{label}">{line}</div>'
