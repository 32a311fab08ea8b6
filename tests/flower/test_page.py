"""docs/federated.md does what it says: its program runs, and its versions are those of the tests."""

from __future__ import annotations

import importlib
import importlib.metadata
import re
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "federated.md").read_text(encoding="utf-8")
BLOCKS = dict(re.findall(r'^```python title="([\w. ]+)"\n(.*?)^```', PAGE, flags=re.DOTALL | re.MULTILINE))


def ran(title: str) -> dict[str, Any]:
    names: dict[str, Any] = {}
    exec(compile(BLOCKS[title], f"docs/federated.md, {title}", "exec"), names)
    return names


def test_every_block_is_run() -> None:
    assert set(BLOCKS) == {"my_federation.py", "server", "two devices"}
    assert PAGE.count("```python") == len(BLOCKS)


def test_client_and_server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "my_federation.py").write_text(BLOCKS["my_federation.py"], encoding="utf-8")
    monkeypatch.syspath_prepend(str(tmp_path))
    names = ran("server")
    assert [found.averaged for found in names["strategy"].rounds] == [(1, 2, 3), (1, 2, 3)]
    assert "1 (1, 2, 3) {} {}" in capsys.readouterr().out
    model = torch.nn.Linear(8, 2)
    model.load_state_dict(names["weights"])
    inputs = torch.randn(500, 8)
    assert float((model(inputs).argmax(1) == (inputs[:, 0] > 0)).double().mean()) > 0.8
    monkeypatch.delitem(sys.modules, "my_federation")


def on_two() -> list[str]:
    options = ran("two devices")["options"]
    return list(options["mesh"].mesh_dim_names)


def test_two_devices() -> None:
    from ranks import on_ranks

    assert on_ranks(2, on_two) == [["probe"], ["probe"]]


def test_versions_are_those_of_the_tests() -> None:
    (version,) = re.findall(r"Tested with flwr ([\d.]+\d)", PAGE)
    assert importlib.metadata.version("flwr") == version
    assert f"flwr=={version}" in (ROOT / "constraints-flower.txt").read_text(encoding="utf-8").splitlines()
