"""Table rows that several measurements use."""

from __future__ import annotations

from typing import Any

from rich import box
from rich.table import Table


def ratios(result: dict[str, Any]) -> Table:
    """A table with the ratios of one case."""
    rows = Table(box=box.SIMPLE_HEAD, title=f"{result['case']}, {result['rounds']} rounds", title_justify="left")
    rows.add_column("figure", overflow="fold")
    rows.add_column("value", justify="right", no_wrap=True)
    for name, value in result["ratios"].items():
        rows.add_row(name, f"{value:.3f}")
    return rows


def with_medians(rows: Table, result: dict[str, Any]) -> Table:
    """The table with the median time of every variant below the rest."""
    for name, value in result["median_ms"].items():
        rows.add_row(f"median step: {name}", f"{value:.1f} ms")
    return rows
