"""Starts the two processes of a benchmark, sends them orders and ends them together."""

from __future__ import annotations

import json
import os
import queue
import subprocess
import sys
import tempfile
import threading
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

from lowland.core.errors import LowlandError
from lowland.planner.ranks import memory

LOOPBACK = "lo0" if sys.platform == "darwin" else "lo"
PATIENCE = 120.0  # seconds for which a rank waits for the other rank in a collective
GRACE = 5.0  # further seconds, in which a rank whose collective timed out reports the error
PAUSE = 1.0  # seconds in which the other rank's error arrives
TOLD = 1500  # characters of a rank's last output that an error shows


class Pair:
    """Rank 0 and rank 1 of a group, one process each, with one thread for arithmetic; see :func:`pair`."""

    def __init__(self, processes: Sequence[subprocess.Popen[bytes]], folder: Path, patience: float) -> None:
        self.processes = processes
        self._folder, self._patience = folder, patience
        self._arrived: queue.SimpleQueue[tuple[int, bytes]] = queue.SimpleQueue()
        self._waiting: list[deque[dict[str, Any]]] = [deque() for _ in processes]
        self.readers = [threading.Thread(target=self._read, args=(rank,), daemon=True) for rank in range(2)]

    def order(self, **order: Any) -> None:
        """Send the same order to both processes."""
        for process in self.processes:
            assert process.stdin is not None
            try:
                os.write(process.stdin.fileno(), json.dumps(order).encode() + b"\n")
            except BrokenPipeError:
                return  # `answers` raises the reason

    def answers(self) -> list[dict[str, Any]]:
        """The next answer of each process.

        Raises:
            LowlandError: A process failed, ended, or timed out.
        """
        while not all(self._waiting):
            try:
                rank, line = self._arrived.get(timeout=self._patience + GRACE)
            except queue.Empty:
                silent = next(rank for rank, answers in enumerate(self._waiting) if not answers)
                raise LowlandError(
                    f"rank {silent} of the benchmark gave no answer for {self._patience + GRACE:.0f} s; is the machine "
                    "busy, or asleep? Choose a smaller case or a wider band"
                ) from None
            answer = _understood(line)
            if "error" in answer:
                raise LowlandError(self._failure(rank, answer))
            self._waiting[rank].append(answer)
        return [answers.popleft() for answers in self._waiting]

    def _read(self, rank: int) -> None:
        stream = self.processes[rank].stdout
        assert stream is not None
        for line in stream:
            self._arrived.put((rank, line))
        self._arrived.put((rank, b""))

    def _failure(self, rank: int, answer: dict[str, Any]) -> str:
        """The errors of both ranks: a rank that lost its partner may report before the partner's own error arrives."""
        errors = {rank: answer["error"]}
        with suppress(queue.Empty):
            while len(errors) < len(self.processes):
                rank, line = self._arrived.get(timeout=PAUSE)
                answer = _understood(line)
                if "error" in answer:
                    errors.setdefault(rank, answer["error"])
        return "\n".join(f"rank {r} of the benchmark {text or self._ended(r)}" for r, text in errors.items())

    def _ended(self, rank: int) -> str:
        with suppress(subprocess.TimeoutExpired):
            self.processes[rank].wait(GRACE)
        output = (self._folder / f"said-{rank}").read_text(errors="replace").strip()
        code = self.processes[rank].returncode
        return f"ended with exit code {code}:\n{output[-TOLD:] or '(it wrote nothing)'}"


def _understood(line: bytes) -> dict[str, Any]:
    """The answer in a line; after a failure it has an ``error``, empty if the process ended without output."""
    if not line:
        return {"error": ""}
    answer: dict[str, Any] = json.loads(line)
    return {"error": f"failed:\n{answer['error'].strip()}"} if "error" in answer else answer


@contextmanager
def pair(
    prefixes: Sequence[Sequence[str]] = ((), ()), device: str = LOOPBACK, patience: float = PATIENCE
) -> Iterator[Pair]:
    """Start both processes, and end them on exit, also after an error.

    Args:
        prefixes: What to put before the command of each rank, such as ``("ip", "netns", "exec", "a")``.
        device: The network device that connects the ranks.
        patience: The timeout of a collective in seconds.

    Yields:
        The processes, which are still connecting.
    """
    # Separate sessions protect the processes from Ctrl-C, so that this process can end them in order.
    environment = {**os.environ, **memory(), "GLOO_SOCKET_IFNAME": device, "OMP_NUM_THREADS": "1"}
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="lowland-")))
        processes: list[subprocess.Popen[bytes]] = []
        for rank, prefix in enumerate(prefixes):
            # The ranks connect through a file, because the namespaces share no network at the start.
            arguments = (str(rank), f"file://{folder / 'meeting'}", str(patience))
            log = stack.enter_context((folder / f"said-{rank}").open("wb"))
            process = subprocess.Popen(
                [*prefix, sys.executable, "-m", "lowland.bench.two_processes.worker", *arguments],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                env=environment,
                start_new_session=True,
            )
            stack.enter_context(process)
            stack.callback(process.kill)
            processes.append(process)
        both = Pair(processes, folder, patience)
        for process, reader in zip(processes, both.readers, strict=True):
            reader.start()
            stack.callback(reader.join)
            stack.callback(process.kill)  # ends the output of the process, and thereby the reader
        yield both
