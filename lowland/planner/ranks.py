"""Starts the ranks of one machine by torchrun, and follows what they say."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from lowland.core.errors import LowlandError

TICK = "lowland-done "  # begins the lines that rank 0 prints after every round, with the fraction that is done
REFUSED = "lowland-refused "  # begins the line of a rank that refuses what it was asked, with the message as JSON
TRACEBACK = "Traceback (most recent call last):"
PATIENCE = 40.0  # seconds in which processes that are told to end may do so
LINES = 30  # at the beginning and at the end of what failed ranks wrote
KEEP = "glibc.malloc.hugetlb=1:glibc.malloc.mmap_max=0:glibc.malloc.trim_threshold=1000000000000"


class RanksError(LowlandError, RuntimeError):
    """The ranks that were started have failed."""


def memory() -> dict[str, str]:
    """The environment that makes glibc keep freed memory; the user's own value, if set.

    By default glibc gives large blocks back to the kernel at once and asks for them anew, layer by layer. A training
    step on the CPU then spends part of its time in page faults, in which several processes slow each other down.
    """
    return {"GLIBC_TUNABLES": os.environ.get("GLIBC_TUNABLES", KEEP)}


def run(
    module: str, arguments: Sequence[str], ranks: int, *, threads: int = 1, tick: Callable[[float], None] | None = None
) -> Any:
    """Run a module in ranks of this machine, and return what rank 0 has written.

    The module gets the arguments, and a last one: the file that rank 0 writes its JSON to. It may call
    :func:`say_done`, and :func:`refusing` runs its main program.

    Args:
        module: The full name of the module, which has a main program.
        arguments: Its arguments.
        ranks: The number of ranks, >= 1.
        threads: PyTorch's CPU threads of a rank, >= 1.
        tick: Called with the fraction that is done, whenever rank 0 says it.

    Raises:
        RanksError: A rank refused, with the message of the first one that did; or the ranks ended with another error,
            and the message has the traceback of the first rank that has one.
    """
    with tempfile.TemporaryDirectory(prefix="lowland-") as folder:
        out, log = Path(folder) / "result.json", Path(folder) / "errors"
        logs = ["--log-dir", f"{folder}/ranks", "--redirects", "2"]  # a file of errors for each rank
        start = ["torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks), *logs, "-m", module]
        command = [sys.executable, "-m", *(start if ranks > 1 else [module]), *arguments, str(out)]
        environment = {**os.environ, **memory(), "OMP_NUM_THREADS": str(threads)}
        with (
            log.open("wb") as errors,
            subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors, env=environment) as process,
        ):
            try:
                assert process.stdout is not None
                for line in process.stdout:
                    if line.startswith(TICK.encode()) and tick is not None:
                        tick(float(line.split()[-1]))
            except BaseException:
                _end(process)  # leaving the block does not wait after an interrupt
                raise
        if process.returncode or not out.exists():
            who = "process" if ranks == 1 else f"{ranks} processes"
            logged = [*sorted(Path(folder).glob("ranks/**/stderr.log"), key=_rank), log]
            texts = [each.read_text(encoding="utf-8", errors="replace") for each in logged]
            if (message := refusal(texts)) is not None:
                raise RanksError(message)
            raise RanksError(
                f"the {who} that measure must end without an error, but ended with exit code {process.returncode}; "
                f"correct what they wrote:\n{failure(texts)}"
            )
        return json.loads(out.read_text(encoding="utf-8"))


def _end(process: subprocess.Popen[bytes]) -> None:
    """End a process and those that it has started."""
    process.terminate()  # torchrun ends its ranks, by force after half a minute
    try:
        process.wait(PATIENCE)
    except subprocess.TimeoutExpired:
        process.kill()


def _rank(log: Path) -> int:
    """The rank of a file of errors, whose folder torchrun has named after it."""
    return int(log.parent.name) if log.parent.name.isdigit() else 0


def refusing(main: Callable[[], int]) -> int:
    """Run the main program of a rank; an error of lowland's becomes a line that :func:`run` reads, without a traceback.

    Args:
        main: The main program, which returns its exit code.

    Returns:
        Its exit code; 2 after an error of lowland's.
    """
    try:
        return main()
    except LowlandError as error:
        print(f"{REFUSED}{json.dumps(str(error))}", file=sys.stderr, flush=True)
        return 2


def refusal(logs: Sequence[str]) -> str | None:
    """The message of the first rank that refused, in what ranks have written; None if none did."""
    lines = (line for text in logs for line in text.splitlines() if line.startswith(REFUSED))
    first = next(lines, None)
    return None if first is None else str(json.loads(first.removeprefix(REFUSED)))


def failure(logs: Sequence[str]) -> str:
    """The first traceback in what ranks have written, or the end of what was written last.

    Args:
        logs: What every rank has written, and at last what their starter has.

    Example:
        >>> failure(["a warning", "Traceback (most recent call last):\\n  …\\nValueError: no", "exit code 1"])
        'Traceback (most recent call last):\\n  …\\nValueError: no'
    """
    for text in logs:
        _, begin, rest = text.partition(TRACEBACK)
        if begin:
            lines = (begin + rest.rstrip()).splitlines()
            return "\n".join(lines if len(lines) <= 2 * LINES else [*lines[:LINES], "…", *lines[-LINES:]])
    ends = [text.strip() for text in logs if text.strip()] or ["nothing"]
    return "\n".join(ends[-1].splitlines()[-LINES:])


def say_done(fraction: float) -> None:
    """Report on rank 0 which fraction is done."""
    if os.environ.get("RANK", "0") == "0":
        print(f"{TICK}{fraction:.4f}", flush=True)
