"""Runs sections in processes of their own, so that an error of a device, or a hang, ends one section only."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path

from gpu.checks import Result
from gpu.sections import Section, run

GRACE = 30.0  # seconds beyond a section's limit: its start, and the end of its last check
# What cuBLAS needs to give the same bits at every call. The laboratory is checked without, as its users run it.
REPEATABLE = {"CUBLAS_WORKSPACE_CONFIG": ":4096:8"}


def run_apart(section: Section, seconds: float) -> Iterator[Result]:
    """The results of a section, whose process is killed if it does not end in time."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "results"
        path.touch()
        command = [sys.executable, "-m", "gpu", section.name, "--inside", str(path), "--seconds", str(seconds)]
        environment = os.environ | {"PYTHONPATH": _path()} | (REPEATABLE if section.repeatable else {})
        child = subprocess.Popen(command, env=environment, start_new_session=True)
        try:
            reason = f"its process ended with {code}" if (code := child.wait(seconds + GRACE)) else ""
        except subprocess.TimeoutExpired:
            reason = f"it did not end within {seconds + GRACE:.0f} s and was killed"
        finally:
            with suppress(ProcessLookupError):  # the usual case: the section has ended, and so have its ranks
                os.killpg(child.pid, signal.SIGKILL)
            child.wait()
        for line in path.read_text(encoding="utf-8").splitlines():
            yield Result(**json.loads(line))
        if reason:
            yield Result(section.name, "failed", None, "", "the section runs to its end", reason, 0.0)


def write(section: Section, seconds: float, path: Path) -> None:
    """Run a section in this process and write its results, one in a line, each as soon as it is there."""
    with path.open("a", encoding="utf-8") as file:
        for result in run(section, seconds):
            file.write(json.dumps(asdict(result)) + "\n")
            file.flush()


def _path() -> str:
    return os.pathsep.join(entry for entry in sys.path if entry)
