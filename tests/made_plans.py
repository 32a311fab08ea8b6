"""A plan that is made by hand, for the tests of its page."""

from __future__ import annotations

from typing import Any

from lowland.report.plans.record import VERSION, PlanRecord

ONE = {"probe": 1, "data": 1, "micro_batch": None}
DATA, PROBE, CUT = ONE | {"data": 2}, ONE | {"probe": 2}, ONE | {"micro_batch": 8}
SHOWN = {str(ONE): "one device", str(DATA): "data=2", str(PROBE): "probe=2", str(CUT): "one device, micro-batches of 8"}


def prediction(method: str, layout: dict[str, Any], ms: float, **changes: Any) -> dict[str, Any]:
    return {
        "method": method, "layout": layout, "shown": SHOWN[str(layout)], "examples": 32, "seconds": ms / 1e3,
        "error": 0.1, "passes": 0.6 * ms / 1e3, "busy": 0.0, "exchange": 0.3 * ms / 1e3, "own": 0.1 * ms / 1e3,
        "bytes": 0.0 if layout == ONE else 2e6, "memory": 3e6, "bound": "exchange",
    } | changes  # fmt: skip


def rates(layout: dict[str, Any], slope: float, *, alone: bool) -> dict[str, Any]:
    line = {"base": 0.001, "slope": slope, "error": 0.05}
    lines = dict.fromkeys(("again", "displaced", "forward"), line)
    return {"layout": layout, "lines": lines, "once": 0.0, "part": 0.9, "alone": alone}


def survey(ranks: int) -> dict[str, Any]:
    layouts = [rates(DATA, 2e-4, alone=False), rates(PROBE, 3e-4, alone=False)]
    return {
        "ranks": ranks, "examples": 32, "parameters": 4_000_000, "quiet": rates(ONE, 1e-4, alone=True),
        "busy": rates(ONE, 1.5e-4, alone=True), "rates": layouts if ranks > 1 else [rates(ONE, 1e-4, alone=True)],
        "own": [], "measured": [],
    }  # fmt: skip


def entries(**changes: Any) -> dict[str, Any]:
    predictions = [
        prediction("plain", ONE, 4.0),
        prediction("sampa", PROBE, 6.0),
        prediction("sam", DATA, 7.5, exchange=-0.001, passes=0.007750),
        prediction("plain", CUT, 5.0),
        prediction("sam", ONE, 9.0),
        prediction("<b>own</b>", ONE, 9.5, memory=None),
    ]
    return {
        "version": VERSION, "task": "digits", "model": "mlp", "recipe": {"batch_size": 32},
        "machine": {"machine": "x86_64", "processor": "a chip", "threads": 1, "torch": "2.0", "lowland": "0.0"},
        "seconds": 20.0, "predictions": predictions, "surveys": [survey(1), survey(2)],
        "left_out": {"sam-on": "the model has no normalization"}, "room": 8_000_000_000,
        "why": {name: f"the layout of {name}" for name in ("plain", "sampa", "sam", "<b>own</b>")}, "runs": [],
    } | changes  # fmt: skip


def made(**changes: Any) -> PlanRecord:
    return PlanRecord.of(entries(**changes))
