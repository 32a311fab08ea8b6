"""docs/federated.md does what it says: its program runs, and its versions are those of the tests."""

from __future__ import annotations

import importlib.metadata
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "federated.md").read_text(encoding="utf-8")
BLOCKS = dict(re.findall(r'^```python title="([\w. ]+)"\n(.*?)^```', PAGE, flags=re.DOTALL | re.MULTILINE))


def ran(title: str) -> dict[str, Any]:
    names: dict[str, Any] = {}
    exec(compile(BLOCKS[title], f"docs/federated.md, {title}", "exec"), names)
    return names


def test_every_block_is_run() -> None:
    assert set(BLOCKS) == {"my_federation.py", "my_server.py", "two devices"}
    assert PAGE.count("```python") == len(BLOCKS)


def test_client_and_server(tmp_path: Path) -> None:
    for name in ("my_federation.py", "my_server.py"):
        (tmp_path / name).write_text(BLOCKS[name], encoding="utf-8")
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "my_server.py"]
    ended = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=True)
    assert [line.rsplit(" ", 1)[0] for line in ended.stdout.splitlines()] == [
        f"{number} (1, 2, 3) {{}} {{}}" for number in (1, 2)
    ]


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
