"""docs/tasks.md does what it says: its commands work one after the other, and its table has every task."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
import torch
from data_files import put
from text_files import text_files

from lowland.cli.main import main
from lowland.lab import names
from lowland.runs.reader import read_all

__all__ = ["put", "text_files"]  # fixtures

PAGE = (Path(__file__).parents[1] / "docs" / "tasks.md").read_text(encoding="utf-8")
COMMANDS = [
    line
    for block in re.findall(r"^```sh\n(.*?)^```", PAGE, flags=re.DOTALL | re.MULTILINE)
    for line in block.splitlines()
    if not line.startswith("pip ") and "pretrained=" not in line
]  # which needs transformers: see integrations/test_pretrained_task.py


def test_the_table_has_every_task_of_the_list() -> None:
    cells = re.findall(r"^\| (`.*?) \|", PAGE, flags=re.MULTILINE)
    listed = {name for cell in cells for name in re.findall("`(.*?)`", cell)}
    assert listed == set(names.tasks())


@pytest.mark.slow
def test_the_commands_work(tmp_path: Path, text_files: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    sizes = torch.rand(40, generator=torch.Generator().manual_seed(0)).tolist()
    rows = [f"{size},{'town' if size > 0.3 else 'country'},{3 * size}" for size in sizes]
    (tmp_path / "houses.csv").write_text("\n".join(["size,place,price", *rows]))
    assert len(COMMANDS) == 5
    for command in COMMANDS:
        small = command.replace("--seeds 5", "--seeds 1").replace("--data DATA", f"--data {text_files} --batch-size 8")
        program, *arguments = shlex.split(small)
        assert program == "lowland"
        assert main([*arguments, "--epochs", "10", "--threads", "1"]) == 0
    assert {"".join(re.findall("^[a-z]+|side=[a-z]+", record.task)) for record in read_all(["runs"])} == {
        "transferside=pretrain", "transfer", "transferside=scratch", "tabular", "trec"
    }  # fmt: skip
