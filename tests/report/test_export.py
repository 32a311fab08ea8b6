from __future__ import annotations

import xml.etree.ElementTree as ET
from pathlib import Path

import pytest

from lowland.core.errors import ArgumentError
from lowland.report import export, markdown, read, summarize
from lowland.report.export import standalone


@pytest.fixture
def records(write_run):
    return [read(write_run(method, seed=seed)) for method in ("plain", "sam") for seed in range(2)]


def test_table_and_figures_are_files_of_their_own(records, tmp_path: Path) -> None:
    written = export(records, tmp_path / "new" / "folder")
    endings = {path.name.rpartition("-")[2] for path in written}
    assert endings == {"table.md", "gains.svg", "epochs.svg", "seconds.svg", "loss.svg"}
    (table,) = (path for path in written if path.suffix == ".md")
    assert table.read_text() == markdown(summarize(records))
    for path in written:
        if path.suffix == ".svg":
            root = ET.parse(path).getroot()
            assert root.tag == "{http://www.w3.org/2000/svg}svg"
            assert "var(--" not in path.read_text()


def test_a_standalone_figure_lies_on_white() -> None:
    root = ET.fromstring(standalone('<svg viewBox="0 0 2 1"><path fill="var(--c1, #0072b2)"/></svg>'))
    rect, path = list(root)
    assert (rect.get("fill"), path.get("fill")) == ("#ffffff", "#0072b2")


def test_a_folder_that_cannot_be_written_to(records, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ArgumentError, match="export must be a folder that can be written to"):
        export(records, tmp_path / "file" / "below")
