"""``lowland simulate``: methods on meshes of up to thousands of devices, in closed form and simulated."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path

from rich import box
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from lowland.bench.simulation.study import Choice, study, total
from lowland.core.errors import ArgumentError
from lowland.planner.links import Algorithm
from lowland.report.page import write_text
from lowland.report.planner.page import export, write_page
from lowland.report.planner.record import Kept, Scaling
from lowland.report.planner.words import HEADINGS, TITLES, cells, shown, verdict


@dataclass(kw_only=True)
class Simulate:
    """Compute what a step and a training take on many devices, and where SAMPa is faster than data-parallel SAM.

    The plan of each method says which passes it asks for. Their times follow from a line, "base + slope * examples",
    the exchanges from latencies and bandwidths, in closed form; stragglers, failures and checkpoints are simulated.
    Writes a page with figures, and the record from which it is drawn. It is a model, and measures nothing: the
    defaults are assumptions, and public figures of an H100 host where they have a source. The same command writes the
    same files.

    Args:
        devices: The largest number of devices, a multiple of host; smaller powers of two are computed, too.
        host: Devices of a host, a power of two.
        within: The link of each device inside a host: ethernet10, ethernet100, hdr, ndr, pcie4, pcie5, nvlink3,
            nvlink4, or GB/s.
        between: The link of a host to other hosts, for all its devices: one of these names, or GB/s.
        lanes: Links between hosts side by side, >= 1.
        within_latency: Seconds of a message within a host besides its bytes, >= 0.
        between_latency: Seconds of a message between hosts besides its bytes, >= 0.
        algorithm: How an all-reduce runs between hosts.
        methods: The methods, such as sam, looksam:k=10. Those that ask for several gradients at once, such as sampa,
            get two groups of half of the devices; others divide the batch over all devices.
        batch: Examples on each device of a group, > 0, where this is equal for all numbers of devices.
        global_batch: Examples of a step on all devices, where this is equal for all numbers of devices.
        base: Seconds of forward and backward besides examples, >= 0.
        slope: Seconds of forward and backward for each example, >= 0.
        forward: The fraction of both that is forward, in [0, 1].
        parameters: The number of parameters, > 0.
        width: Bytes of an entry of a gradient: 4 for float32, 2 for bfloat16.
        overlap: The fraction of a backward in which an exchange can hide, in [0, 1].
        bucket: Bytes of a message of an exchange that can hide; the last one never hides.
        arithmetic: Seconds of a method's arithmetic on vectors in a step, such as: sam 0.001 sampa 0.003. Methods that
            are not named have none.
        update: Seconds of the optimizer's step, >= 0.
        sigma: Differences between devices and steps: the standard deviation of the logarithm of a pass's time, 0
            to 3.
        slow: How many times longer passes take on one of the devices, >= 1.
        mtbf: Mean hours between two failures of one device, > 0, or inf. Meta counted 419 unexpected interruptions of
            16,384 devices in 54 days (The Llama 3 Herd of Models, 2024), one in 51,000 device-hours.
        interval: Seconds between checkpoints, > 0; by default Young's, the square root of twice checkpoint times the
            time between failures.
        checkpoint: Seconds that training waits for a checkpoint, >= 0.
        restart: Seconds from a failure until training goes on, >= 0.
        examples: Examples of the training, each epoch counted.
        steps: Simulated steps of each method and mesh, from 2 to 1,000,000; of methods whose steps differ, such as
            looksam, the next multiple of 100, so that the mean is that of the training.
        seed: Of the random numbers, >= 0.
        out: The page to write; the record is written beside it as .json.
        record: Draw the page from this record instead of computing.
        export: A folder for the figures as SVG, too.
    """

    devices: int = 10_000
    host: int = 8
    within: str = "nvlink4"
    between: str = "ndr"
    lanes: int = 8
    within_latency: float = 5e-6
    between_latency: float = 2e-5
    algorithm: Algorithm = "halving"
    methods: tuple[str, ...] = ("sam", "sampa", "micro-sam", "looksam", "async-sam")
    batch: float = 64
    global_batch: float = 16_384
    base: float = 0.01
    slope: float = 0.001
    forward: float = 1 / 3
    parameters: float = 25.6e6
    width: int = 4
    overlap: float = 0.5
    bucket: float = 25 * 2**20
    arithmetic: dict[str, float] = field(default_factory=dict)
    update: float = 0.0
    sigma: float = 0.05
    slow: float = 1.0
    mtbf: float = 50_000.0
    interval: float | None = None
    checkpoint: float = 30.0
    restart: float = 300.0
    examples: float = 1e12
    steps: int = 200
    seed: int = 0
    out: Path = Path("simulation.html")
    record: Path | None = None
    export: Path | None = None

    def run(self, console: Console, argv: Sequence[str]) -> int:
        """Compute or read the study, print it, and write page and record."""
        if self.out.suffix == ".json":
            raise ArgumentError(
                f"out must be a page, but is {self.out}, the record's name; write --out simulation.html"
            )
        given = [
            option.name for option in fields(Choice) if getattr(self, option.name) != getattr(Choice(), option.name)
        ]
        if self.record is not None and given:
            raise ArgumentError(
                f"record must be given without {', '.join(given)}, because it has been computed already; leave them "
                "out, or leave --record out to compute"
            )
        scaling = self._computed(console) if self.record is None else Scaling.read(self.record)
        written = [write_page(scaling, self.out, command=shlex.join(["lowland", *argv]))]
        if self.record is None:
            written.append(write_text(self.out.with_suffix(".json"), scaling.text()))
        if self.export is not None:
            written += export(scaling, self.export)
        for kept, title in TITLES.items():
            console.print(_table(scaling, kept, title))
        console.print(verdict(scaling), markup=False, highlight=False)
        for path in written:
            console.print(f"written: {path}", markup=False, highlight=False, soft_wrap=True)
        return 0

    def _computed(self, console: Console) -> Scaling:
        choice = Choice(**{option.name: getattr(self, option.name) for option in fields(Choice)})
        columns = (TextColumn("{task.description}"), BarColumn(), TimeRemainingColumn())
        with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
            bar = progress.add_task("simulate", total=total(choice))
            return study(choice, lambda: progress.advance(bar))


def _table(scaling: Scaling, kept: Kept, title: str) -> Table:
    rows = Table(box=box.SIMPLE_HEAD, title=title, title_justify="left", padding=(0, 1, 0, 0))
    for name in HEADINGS:
        rows.add_column(name, justify="left" if name == "method" else "right", no_wrap=True)
    for point in shown(scaling, kept):
        rows.add_row(*cells(point, scaling.examples))
    return rows
