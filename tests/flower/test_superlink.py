"""The client under Flower's own SuperLink and SuperNodes on this machine, with a process killed in mid-round."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from flower.federation import app, context, first_arrays, message
from lowland.integrations.flower import FedAvg

ROOT = Path(__file__).parents[2]
BIN = Path(sys.executable).parent
PATIENCE = 300.0  # seconds
PROJECT = """
[project]
name = "killed"
version = "1.0.0"
description = "Two clients, of which one is killed"
license = "Apache-2.0"
dependencies = []
[tool.flwr.app]
publisher = "lowland"
[tool.flwr.app.components]
serverapp = "killed.server:app"
clientapp = "killed.client:app"
[tool.flwr.app.config]
method = "sampa"
memory = "kept"
fails = "kill@1@2"
out = "OUT"
"""
CLIENT = "from flower.federation import app as made\n\napp = made()\n"
SERVER = """
import os

import torch
from flower.federation import first_arrays
from flwr.serverapp import ServerApp
from lowland.integrations.flower import FedAvg

app = ServerApp()


@app.main()
def main(grid, context):
    strategy = FedAvg(fraction_evaluate=0.0)
    result = strategy.start(grid, first_arrays(), num_rounds=2, timeout=120)
    told = [(len(r.averaged), list(r.failed.values()), r.examples) for r in strategy.rounds]
    out = context.run_config["out"]
    torch.save({"weights": dict(result.arrays.to_torch_state_dict()), "rounds": told}, out + ".unfinished")
    os.replace(out + ".unfinished", out)
"""


def free_ports(count: int) -> list[int]:
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [each.getsockname()[1] for each in sockets]
    for each in sockets:
        each.close()
    return ports


@pytest.fixture
def superlink(tmp_path: Path) -> Iterator[dict[str, str]]:
    """A SuperLink with two SuperNodes; the environment of `flwr run`, which finds it under the name "here"."""
    home, ports = tmp_path / "home", free_ports(3)
    home.mkdir()
    place = f"127.0.0.1:{ports[0]}"
    (home / "config.toml").write_text(
        f'[superlink]\ndefault = "here"\n[superlink.here]\naddress = "{place}"\ninsecure = true\n'
    )
    environment = os.environ | {
        "FLWR_HOME": str(home),
        "FLWR_TELEMETRY_ENABLED": "0",
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tests")]),
        "PATH": os.pathsep.join([str(BIN), os.environ["PATH"]]),
    }
    link = ["flower-superlink", "--insecure", "--disable-runtime-dependency-installation", "--host", "127.0.0.1"]
    node = ["flower-supernode", "--insecure", "--superlink", place]
    commands = [[*link, "--port", str(ports[0])]]
    for number in range(2):
        settings = f"partition-id={number} num-partitions=2"
        commands.append([*node, "--port", str(ports[1 + number]), "--node-config", settings])
    with (tmp_path / "log").open("w") as log:
        started = [
            subprocess.Popen([BIN / command[0], *command[1:]], env=environment, stdout=log, stderr=log, cwd=tmp_path)
            for command in commands
        ]
        yield environment
        for process in reversed(started):
            process.terminate()
        for process in started:
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def run_app(folder: Path, environment: dict[str, str]) -> None:
    """Submit the app, as soon as the SuperLink listens."""
    for _ in range(120):
        command = [BIN / "flwr", "run", str(folder), "here"]
        ran = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=PATIENCE)
        if "Successfully started run" in ran.stdout:
            return
        threading.Event().wait(1)
    raise AssertionError(ran.stdout + ran.stderr)


def awaited(path: Path) -> Any:
    for _ in range(int(PATIENCE)):
        if path.exists():
            return torch.load(path, weights_only=True)
        threading.Event().wait(1)
    raise AssertionError(f"no result after {PATIENCE:.0f} s:\n{(path.parent / 'log').read_text()[-5000:]}")


@pytest.mark.slow
def test_a_killed_client_app_is_survived(tmp_path: Path, superlink: dict[str, str]) -> None:
    package = tmp_path / "app" / "killed"
    package.mkdir(parents=True)
    (package / "__init__.py").touch()
    (package / "client.py").write_text(CLIENT)
    (package / "server.py").write_text(SERVER)
    out = tmp_path / "result.pt"
    (package.parent / "pyproject.toml").write_text(PROJECT.replace("OUT", str(out)))
    run_app(package.parent, superlink)
    found = awaited(out)
    assert [(count, examples) for count, _, examples in found["rounds"]] == [(2, 34), (1, 24)]
    assert found["rounds"][0][1] == []
    assert found["rounds"][1][1] == ["ClientApp stopped responding."]  # what Flower's SuperNode says
    for name, value in by_hand().items():
        assert torch.equal(found["weights"][name], value), name


def by_hand() -> dict[str, torch.Tensor]:
    """The same two rounds in this process; a sum of two terms does not depend on their order."""
    places = [context(client, method="sampa", memory="kept") for client in (0, 1)]
    arrays = first_arrays()
    for number, clients in ((1, (0, 1)), (2, (0,))):
        strategy = FedAvg(fraction_evaluate=0.0)
        strategy._sent = {client + 1: arrays for client in clients}
        replies = [app()(message(arrays, number, client), places[client]) for client in clients]
        arrays = strategy.aggregate_train(number, replies)[0]
    return dict(arrays.to_torch_state_dict())
