"""docs/sweeps.md does what it says: its commands and its Python run, with fewer steps."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from lowland.cli.main import main
from lowland.lab import Recipe
from lowland.lab.tasks.digits import Digits

PAGE = (Path(__file__).parents[1] / "docs" / "sweeps.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```python\n(.*?)^```", PAGE, flags=re.DOTALL | re.MULTILINE)
COMMANDS = [line for block in re.findall(r"^```sh\n(.*?)^```", PAGE, flags=re.DOTALL | re.MULTILINE)
            for line in block.splitlines()]  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("command", COMMANDS)
def test_its_commands_work(command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: object) -> None:
    monkeypatch.chdir(tmp_path)
    for long, short in (("--trials 20", "--trials 2"), ("--grid 5", "--grid 2"), ("--seeds 5", "--seeds 2")):
        command = command.replace(long, short)
    program, *arguments = shlex.split(command)
    assert program == "lowland"
    assert main([*arguments, "--epochs", "2", "--limit", "4"]) == 0
    shown = capsys.readouterr().out  # type: ignore[attr-defined]
    assert "page: runs/" in shown
    if arguments[0] == "sweep":
        assert "the best so far" in shown
        assert re.search(r"^lowland compare --task ", shown, flags=re.MULTILINE)


@pytest.mark.slow
def test_its_python_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(Digits, "recipe", lambda self, model: Recipe(lr=0.1, epochs=2, batch_size=256))
    (block,) = BLOCKS
    names: dict[str, object] = {"__name__": "page"}
    exec(compile(block, "sweeps.md", "exec"), names)
    result = names["result"]
    assert len(result.record.contestants[0].trials) == 4  # type: ignore[attr-defined]
    assert result.page.is_file()  # type: ignore[attr-defined]
    assert len(result.best) == 1  # type: ignore[attr-defined]


def test_its_ranges_are_ranges() -> None:
    from lowland.lab.studies.sweeps.template import Template

    rows = [row.replace("\\|", "|") for row in re.findall(r"^\| `(\w+=.*?)` \|", PAGE, flags=re.MULTILINE)]
    assert len(rows) == 5
    methods = {"rho": "sam:{}", "lam": "sampa:{}", "k": "looksam:{}", "batch_size": "plain@{}"}
    for row in rows:
        made = Template.contestant(methods[row.partition("=")[0]].format(row))
        assert [each.values.text for each in made.parameters] == [row.partition("=")[2]]
