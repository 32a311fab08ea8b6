"""Two processes that take orders, and end together."""

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

LOOPBACK = "lo0" if sys.platform == "darwin" else "lo"
PATIENCE = 120.0  # seconds for which a rank waits for the other, in a collective
GRACE = 5.0  # seconds more, after which a rank has given up by itself and told why
PAUSE = 1.0  # seconds in which the other rank fails as well
KEEP = "glibc.malloc.hugetlb=1:glibc.malloc.mmap_max=0:glibc.malloc.trim_threshold=1000000000000"
TOLD = 1500  # characters of what a rank wrote before it ended


class Pair:
    """Rank 0 and rank 1 of a group, one process each, with one thread for arithmetic; see :func:`pair`."""

    def __init__(self, processes: Sequence[subprocess.Popen[bytes]], folder: Path, patience: float) -> None:
        self.processes = processes
        self._folder, self._patience = folder, patience
        self._arrived: queue.SimpleQueue[tuple[int, bytes]] = queue.SimpleQueue()
        self._waiting: list[deque[dict[str, Any]]] = [deque() for _ in processes]
        self.readers = [threading.Thread(target=self._read, args=(rank,), daemon=True) for rank in range(2)]

    def order(self, **order: Any) -> None:
        """Give both the same order."""
        for process in self.processes:
            assert process.stdin is not None
            try:
                os.write(process.stdin.fileno(), json.dumps(order).encode() + b"\n")
            except BrokenPipeError:
                return  # `answers` tells why it is gone

    def answers(self) -> list[dict[str, Any]]:
        """The next answer of both.

        Raises:
            LowlandError: One has failed, ended, or is silent for longer than it may be.
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
        """What went wrong, on both ranks: the one that lost its partner may be heard before the one that was lost."""
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
        said = (self._folder / f"said-{rank}").read_text(errors="replace").strip()
        code = self.processes[rank].returncode
        return f"ended with exit code {code}:\n{said[-TOLD:] or '(it wrote nothing)'}"


def _understood(line: bytes) -> dict[str, Any]:
    """An answer; ``error`` is in it after a failure, empty where the process ended without a word."""
    if not line:
        return {"error": ""}
    answer: dict[str, Any] = json.loads(line)
    return {"error": f"failed:\n{answer['error'].strip()}"} if "error" in answer else answer


def memory() -> dict[str, str]:
    """Environment under which processes keep the memory that they free, all variants alike; the user's own, if set.

    By default glibc gives large blocks back to the kernel at once and asks for them anew, layer by layer. A training
    step on the CPU then spends part of its time in page faults, and two processes get in each other's way there.
    """
    return {"GLIBC_TUNABLES": os.environ.get("GLIBC_TUNABLES", KEEP)}


@contextmanager
def pair(
    prefixes: Sequence[Sequence[str]] = ((), ()), device: str = LOOPBACK, patience: float = PATIENCE
) -> Iterator[Pair]:
    """Start both processes; whatever happens, none is left.

    Args:
        prefixes: What to put before the command of each rank, such as ``("ip", "netns", "exec", "a")``.
        device: The network device through which they talk.
        patience: Seconds for which they wait for each other in a collective.

    Yields:
        The processes, which set up their connection meanwhile.
    """
    # One thread each; and a session of their own, or Ctrl-C would reach them before this process can end them.
    environment = {**os.environ, **memory(), "GLOO_SOCKET_IFNAME": device, "OMP_NUM_THREADS": "1"}
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="lowland-")))
        processes: list[subprocess.Popen[bytes]] = []
        for rank, prefix in enumerate(prefixes):
            # They meet at a file, because namespaces share files but no network.
            meeting = (str(rank), f"file://{folder / 'meeting'}", str(patience))
            said = stack.enter_context((folder / f"said-{rank}").open("wb"))
            process = subprocess.Popen(
                [*prefix, sys.executable, "-m", "lowland.bench.two_processes.worker", *meeting],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=said,
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
            stack.callback(process.kill)  # ends its output, and so the reader
        yield both
