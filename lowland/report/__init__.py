"""Reports from run files: the table, the figures and the page. Reads files only; needs no torch.

::

    records = read_all(["runs"])
    print(markdown(summarize(records)))
    write_page(records, "report.html")
"""

from __future__ import annotations

from lowland.report.export import export
from lowland.report.page import write_page
from lowland.report.sentences import notes, statement, verdict
from lowland.report.summary import Row, groups, summarize
from lowland.report.table import LEGEND, markdown, rich_table
from lowland.runs.record import EndRecord, EpochRecord, MethodRecord, RunRecord, read, read_all
from lowland.runs.statistics import Estimate, effect, estimate, paired

__all__ = [
    "LEGEND",
    "EndRecord",
    "EpochRecord",
    "Estimate",
    "MethodRecord",
    "Row",
    "RunRecord",
    "effect",
    "estimate",
    "export",
    "groups",
    "markdown",
    "notes",
    "paired",
    "read",
    "read_all",
    "rich_table",
    "statement",
    "summarize",
    "verdict",
    "write_page",
]
