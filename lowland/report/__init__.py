"""Reports from run files: the table, the figures and the page. Reads files only; needs no torch.

::

    records = read_all(["runs"])
    print(markdown(summarize(records)))
    write_page(records, "report.html")
"""

from __future__ import annotations

from lowland.report.columns import legend
from lowland.report.export import export
from lowland.report.grouping import groups
from lowland.report.page import write_page
from lowland.report.sentences import notes, verdict
from lowland.report.summary import Row, summarize
from lowland.report.table import markdown, rich_table
from lowland.runs.reader import read, read_all
from lowland.runs.record import BestRecord, EndRecord, EpochRecord, MethodRecord, MetricRecord, RunRecord
from lowland.runs.statistics import Estimate, effect, estimate, paired

__all__ = [
    "BestRecord",
    "EndRecord",
    "EpochRecord",
    "Estimate",
    "MethodRecord",
    "MetricRecord",
    "Row",
    "RunRecord",
    "effect",
    "estimate",
    "export",
    "groups",
    "legend",
    "markdown",
    "notes",
    "paired",
    "read",
    "read_all",
    "rich_table",
    "summarize",
    "verdict",
    "write_page",
]
