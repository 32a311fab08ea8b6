"""Checks what only a GPU can show: a table of all checks, which expectations they confirm, and a JSON file."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from gpu import report
from gpu.processes import run_apart, write
from gpu.sections import SECTIONS

MINUTES = sum(section.seconds for section in SECTIONS.values()) / 60


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the sections and report; 1 if a check failed, else 0."""
    options = parser().parse_args(arguments)
    if options.inside is not None:
        write(SECTIONS[options.sections[0]], options.seconds, options.inside)
        return 0
    console = Console(width=160)
    results, seconds, spare = {}, {}, 0.0
    for name in options.sections:
        own = SECTIONS[name].seconds * options.minutes / MINUTES
        limit = min(
            own + max(spare, 0.0), 2 * own
        )  # what earlier sections have left, but a hang may not take all of it
        console.print(f"{name}: at most {limit:.0f} s", highlight=False)
        begin = time.perf_counter()
        results[name] = list(run_apart(SECTIONS[name], limit))
        seconds[name] = time.perf_counter() - begin
        spare += own - seconds[name]
        report.save(results, seconds, options.out)  # after every section, so that an interruption loses one only
    report.show(results, console)
    console.print(f"written to {options.out}", highlight=False)
    return int(any(r.outcome == "failed" for of_section in results.values() for r in of_section))


def parser() -> argparse.ArgumentParser:
    """The command's options."""
    found = argparse.ArgumentParser(prog="python -m gpu", description=__doc__)
    found.add_argument("sections", nargs="*", type=section, default=[*SECTIONS], help=f"of {', '.join(SECTIONS)}; all")
    found.add_argument("--out", type=Path, default=Path("gpu.json"), help="the JSON file (gpu.json)")
    found.add_argument("--minutes", type=float, default=MINUTES, help=f"the time for all sections ({MINUTES:g})")
    found.add_argument("--inside", type=Path, help=argparse.SUPPRESS)  # how a section's process is started
    found.add_argument("--seconds", type=float, default=0.0, help=argparse.SUPPRESS)
    return found


def section(name: str) -> str:
    """The name of a section."""
    if name not in SECTIONS:
        raise argparse.ArgumentTypeError(f"a section must be one of {', '.join(SECTIONS)}, but is {name!r}")
    return name


if __name__ == "__main__":
    sys.exit(main())
