"""Python in processes of its own, forked by a server that has imported torch: they start in a tenth of the time.

What such a process imports of the user's, it imports for the first time, and its environment, folder and streams are
its own. It differs from a new interpreter in what is already imported, in that it has one thread, and in that it calls
what ``atexit`` knows, but does not finalize.
"""

from __future__ import annotations

import atexit
import multiprocessing
import os
import runpy
import subprocess
import sys
import tempfile
from multiprocessing.context import ForkServerContext
from pathlib import Path

import torch
from torch.distributed import TCPStore

IMPORTED = [
    "lowland.cli.main", "lowland.cli.compare", "lowland.cli.train", "lowland.cli.bench.choice", "lowland.cli.report",
    "lowland.report.drawing", "torch._dynamo", "torch.distributed.fsdp", "torch.distributed.tensor", "sklearn.datasets",
    "tyro", "rich.console",
]  # fmt: skip
PATIENCE = 240.0  # seconds


def server() -> ForkServerContext:
    """The server of this process. It imports and computes nothing, so that no thread and no kernel is chosen."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(IMPORTED)
    return context


class Python:
    """What ``python`` makes of a command, ``-m module`` or a script with its arguments.

    Args:
        command: The words after ``python``.
        folder: Where the process begins.
        environment: What it finds there besides the environment of this process.
    """

    def __init__(self, command: list[str], folder: Path | None = None, **environment: str) -> None:
        self._written = tempfile.TemporaryDirectory()
        self._streams = [Path(self._written.name) / name for name in ("out", "err")]
        place = str(Path.cwd() if folder is None else folder)
        streams = list(map(str, self._streams))
        self.process = server().Process(target=_python, args=(command, place, {**os.environ, **environment}, streams))
        self.process.start()

    def ended(self) -> subprocess.CompletedProcess[str]:
        self.process.join(PATIENCE)
        code = self.process.exitcode
        self.process.kill()
        self.process.join()
        assert code is not None, f"still running after {PATIENCE:.0f} s"
        out, err = (path.read_text(encoding="utf-8") for path in self._streams)
        self._written.cleanup()
        return subprocess.CompletedProcess([], code, out, err)


def python(command: list[str], folder: Path | None = None, **environment: str) -> subprocess.CompletedProcess[str]:
    """The end of :class:`Python`."""
    return Python(command, folder, **environment).ended()


class Torchrun:
    """Two processes that run the same command, as torchrun starts them; torchrun itself is in test_torchrun.py."""

    def __init__(self, command: list[str], folder: Path | None = None, **environment: str) -> None:
        self._store = TCPStore("localhost", 0, is_master=True, wait_for_workers=False)
        environment |= {
            "MASTER_ADDR": "localhost", "MASTER_PORT": str(self._store.port),
            "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2",
            "TORCHELASTIC_USE_AGENT_STORE": "True", "TORCHELASTIC_RESTART_COUNT": "0",
        }  # fmt: skip
        self.ranks = [Python(command, folder, RANK=str(i), LOCAL_RANK=str(i), **environment) for i in range(2)]

    def ended(self) -> list[subprocess.CompletedProcess[str]]:
        return [rank.ended() for rank in self.ranks]


def _python(command: list[str], folder: str, environment: dict[str, str], streams: list[str]) -> None:
    for number, path in enumerate(streams, 1):
        opened = os.open(path, os.O_WRONLY | os.O_CREAT)
        os.dup2(opened, number)
        os.close(opened)
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    torch.set_num_threads(1)
    sys.orig_argv = [sys.executable, *command]
    try:
        if command[0] == "-m":
            sys.argv, sys.path[:0] = command[1:], [folder]
            runpy.run_module(command[1], run_name="__main__", alter_sys=True)
        else:
            sys.argv, sys.path[:0] = command, [str(Path(folder, command[0]).parent)]
            runpy.run_path(command[0], run_name="__main__")
    finally:
        atexit._run_exitfuncs()
