"""The sections, and how one runs."""

from __future__ import annotations

import importlib
import time
import traceback
from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch

from gpu.checks import NO_GPU, Check, Result
from gpu.training import there_are_gpus


@dataclass(frozen=True)
class Section:
    """A module with checks.

    Args:
        name: The name of the section and of its module.
        seconds: The time that it may take of ten minutes.
        only_on_a_gpu: Whether no part of it runs on a CPU.
        repeatable: Whether its process asks cuBLAS for the same bits at every call, which is slower.
    """

    name: str
    seconds: float
    only_on_a_gpu: bool = False
    repeatable: bool = False

    def checks(self) -> Iterator[Check]:
        """The checks of the section, which are skipped where they need a GPU and there is none."""
        missing = NO_GPU if self.only_on_a_gpu and not there_are_gpus() else ""
        for check in importlib.import_module(f"gpu.{self.name}").checks():
            yield replace(check, missing=missing or check.missing)


SECTIONS = {
    section.name: section
    for section in (
        Section("numbers", 60),
        Section("syncs", 40, only_on_a_gpu=True),
        Section("ahead", 30, only_on_a_gpu=True),
        Section("bits", 40, repeatable=True),
        Section("amp", 30, repeatable=True),
        Section("streams", 20, only_on_a_gpu=True),
        Section("memory", 40),
        Section("launches", 50),
        Section("timing", 60, only_on_a_gpu=True),
        Section("executors", 40),
        Section("dist", 50),
        Section("lab", 40),
        Section("graphs", 100, only_on_a_gpu=True),  # the slow one comes last
    )
}


def run(section: Section, seconds: float) -> Iterator[Result]:
    """The results of a section's checks, in order.

    Args:
        section: The section.
        seconds: No check begins later than this; those that are left are skipped.
    """
    torch.set_num_threads(1)
    end = time.monotonic() + seconds
    try:
        for check in section.checks():
            late = time.monotonic() > end
            yield check.skip(f"the section's {seconds:.0f} s were over") if late else check()
    except Exception:
        reason = " ".join(traceback.format_exc().split())[-500:]
        yield Result(section.name, "failed", None, "", "the section runs to its end", reason, 0.0)
