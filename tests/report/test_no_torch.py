from __future__ import annotations

import ast
from pathlib import Path

import pytest

import lowland.report

FILES = sorted(Path(lowland.report.__file__).parent.glob("*.py"))


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_reads_files_only(file: Path) -> None:
    # every import statement anywhere in the file, also inside functions and under TYPE_CHECKING
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "relative import"
            names = [node.module or ""]
        else:
            continue
        for name in names:
            assert name.split(".")[0] != "torch"
            if name.split(".")[0] == "lowland":
                assert name == "lowland.errors" or name.split(".")[:2] == ["lowland", "report"]


def test_files_found() -> None:
    assert {"records", "page", "figures", "table"} <= {file.stem for file in FILES}
