"""Several ranks for tests: processes that stay, joined by gloo, and run functions by name."""

from __future__ import annotations

import atexit
import importlib
import os
import sys
import tempfile
import traceback
from collections.abc import Callable
from datetime import timedelta
from multiprocessing import get_context
from multiprocessing.connection import Connection
from typing import Any

from forked import server

PATIENCE = 60.0  # seconds
SWITCH = "LOWLAND_SHARED_MEMORY"  # ranks get it from the test that runs on them

_pools: dict[int, Ranks] = {}


class RankError(AssertionError):
    """A function failed on a rank."""


class Ranks:
    """``count`` processes of one gloo group."""

    def __init__(self, count: int) -> None:
        self.pipes: list[Connection] = []
        self.processes = []
        with tempfile.NamedTemporaryFile(delete=False) as meeting:
            pass
        os.unlink(meeting.name)
        for rank in range(count):
            # The ranks that the server forks order sets alike, and rank 0 otherwise: no collective may depend on it.
            context: Any = get_context("spawn") if rank == 0 else server()
            here, there = context.Pipe()
            process = context.Process(target=_serve, args=(there, rank, count, meeting.name, sys.path), daemon=True)
            process.start()
            self.pipes.append(here)
            self.processes.append(process)

    def run(self, function: Callable[..., Any], *args: Any) -> list[Any]:
        try:
            for pipe in self.pipes:
                pipe.send((function.__module__, function.__qualname__, args, os.environ.get(SWITCH)))
        except BrokenPipeError as error:
            self.end()
            raise RankError(f"a rank was no longer there for {function.__name__}") from error
        answers = []
        for rank, pipe in enumerate(self.pipes):
            if not pipe.poll(PATIENCE):
                self.end()
                raise RankError(f"rank {rank} gave no answer to {function.__name__} in {PATIENCE:.0f} s")
            try:
                answers.append(pipe.recv())
            except EOFError:
                answers.append((False, f"it ended in {function.__name__}"))
        failed = [f"rank {rank}: {text}" for rank, (ok, text) in enumerate(answers) if not ok]
        if failed:
            self.end()  # collectives may be half done
            raise RankError("\n".join(failed))
        return [value for _, value in answers]

    def end(self) -> None:
        for process in self.processes:
            process.kill()
        for count, pool in list(_pools.items()):
            if pool is self:
                del _pools[count]


def on_ranks(count: int, function: Callable[..., Any], *args: Any) -> list[Any]:
    """What ``function(*args)`` returns on each of ``count`` ranks; it must be at the top of its module."""
    if count not in _pools:
        _pools[count] = Ranks(count)
    return _pools[count].run(function, *args)


@atexit.register
def _end() -> None:
    for pool in list(_pools.values()):
        pool.end()


def _serve(pipe: Connection, rank: int, count: int, meeting: str, path: list[str]) -> None:
    sys.path[:] = path
    import torch
    import torch.distributed as dist

    torch.set_num_threads(1)
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    dist.init_process_group(
        "gloo", init_method=f"file://{meeting}", rank=rank, world_size=count, timeout=timedelta(seconds=PATIENCE)
    )
    from branches import branches

    with branches():
        _answer(pipe)


def _answer(pipe: Connection) -> None:
    import torch

    while True:
        try:
            module, name, args, switch = pipe.recv()
        except EOFError:
            return
        torch.manual_seed(0)
        os.environ.pop(SWITCH, None)
        if switch is not None:
            os.environ[SWITCH] = switch
        try:
            pipe.send((True, getattr(importlib.import_module(module), name)(*args)))
        except BaseException:
            pipe.send((False, traceback.format_exc()))
