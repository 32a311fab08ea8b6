"""The sentences and the tables of a convergence study, which terminal and page share."""

from __future__ import annotations

from collections.abc import Sequence

from lowland.report.convergence.record import ProblemRecord, Study, TraceRecord
from lowland.report.values import NONE, listed, minus, plural

HEADINGS = ("method", "distance", "mean ‖g‖²", "slope", "bound", "holds", "V rises")
HELP = {
    "distance": "to the minimizer: root mean square over the last quarter of the steps",
    "mean ‖g‖²": "the mean of the squared gradient norm over all steps but the first, which for SAMPa is a plain step",
    "slope": "exponent of T in the mean over the first T steps, fitted over the last decade: −1 while the method "
    "converges, towards 0 where it has settled at a distance",
    "bound": "what the theorem allows for the mean; for SAMPa with lam = 0, SAM and plain descent with exact gradients",
    "holds": "whether the mean is below the bound, and whether no step breaks the inequality that it is summed from",
    "V rises": "the share of the steps in which the Lyapunov function rises (the loss, except for SAMPa); the theorem "
    "allows rises in lr² rho²",
}


def figure_text(value: float | None, spec: str = ".3g") -> str:
    """A number with a true minus sign; a dash for None."""
    if value is None:
        return NONE
    text = format(value, spec)
    return minus(text.removeprefix("-") if float(text) == 0 else text)


def cells(trace: TraceRecord) -> list[str]:
    """The row of a method in the order of ``HEADINGS``."""
    if trace.diverged:
        return [trace.method, "diverged", *[NONE] * 3, _held(trace), NONE]
    return [
        trace.method,
        figure_text(trace.distance),
        figure_text(trace.mean_square),
        figure_text(trace.slope, ".2f"),
        figure_text(trace.bound),
        _held(trace),
        NONE if trace.rises is None else f"{100 * trace.rises:.0f} %",
    ]


def _held(trace: TraceRecord) -> str:
    if trace.holds is None:
        return trace.reason.partition(":")[0] or NONE
    if trace.holds:
        return "yes"
    return f"NO, {plural(trace.broken, 'step')} too high" if trace.broken else "NO, the mean is too high"


def title(problem: ProblemRecord) -> str:
    """The heading of a problem."""
    return f"{problem.name}: {problem.formula}"


def setting(problem: ProblemRecord) -> str:
    """The sentence about a problem's constants and whether the theorem covers SAMPa on it."""
    shown = f"L = {problem.smoothness:.4g}, step {problem.lr:.4g}."
    if problem.noisy:
        return f"{shown} The theorems are about exact gradients and say nothing about mini-batches."
    if problem.covered:
        return f"{shown} SAMPa's theorem holds for steps below {problem.limit:.4g}."
    return f"{shown} The conditions do not hold: SAMPa's theorem needs a step below {problem.limit:.4g}."


def verdict(study: Study) -> str:
    """The first sentences: whether every bound holds, and who settles where on ``||x||^2``."""
    judged = [trace for trace in study.traces if trace.holds is not None]
    failed = [f"{trace.method} on {trace.problem}" for trace in judged if not trace.holds]
    parts = []
    if not judged:
        parts.append("No bound can be checked, because the conditions hold nowhere.")
    elif failed:
        parts.append(f"The bound does NOT hold for {listed(failed)}.")
    else:
        held = "The bound holds" if len(judged) == 1 else f"All {len(judged)} bounds hold"
        parts.append(f"{held}, and no step breaks the inequality of its theorem.")
    loose = [problem.name for problem in study.problems if not problem.noisy and not problem.covered]
    if loose:
        parts.append(f"On {listed(loose)} the conditions do not hold.")
    diverged = [f"{trace.method} on {trace.problem}" for trace in study.traces if trace.diverged]
    if diverged:
        parts.append(f"{listed(diverged, 6)} diverged.")
    return " ".join([*parts, *settling(study)])


def settling(study: Study) -> Sequence[str]:
    """The sentence about the distance on ``||x||^2`` at the smallest step, and its exponent; none without any."""
    found = []
    for name, exponent in study.floor_slopes.items():
        own = [floor for floor in study.floors if floor.method == name]
        if exponent is not None and own:
            found.append(f"{name} at {own[-1].distance / study.rho:.2g} rho (as lr^{figure_text(exponent, '.2f')})")
    if not found:
        return []
    lr = min(floor.lr for floor in study.floors)
    return [f"On ||x||², with a step of {lr:.4g}, the methods settle away from the minimizer: {listed(found)}."]
