"""What a change costs per step: two checkouts of lowland in one process, whose steps take turns.

Two runs of ``lowland bench overhead`` differ by 1 to 3 % on a shared machine, even with the same code. Here each step
of one checkout stands beside the same step of the other, and their order changes from round to round. Two models of
the same code, in one process, still differ by about 1 %, by where in memory their tensors lie; so each checkout has two
instances, and the ratio is the geometric mean of the four pairs. What the columns "before / before" and "after / after"
differ from 1, and the row "two gradients", which runs no code of lowland, is the measurement's own error.

    git worktree add /tmp/before 90bdc41
    OMP_NUM_THREADS=1 python benchmarks/two_trees.py /tmp/before . --case 1000-small-tensors

With ``--counts`` the work itself is counted, over the same steps and exactly: the instructions that the interpreter
executes, the calls into C, and torch's operators. The clock cannot tell one per cent here, the counts can.
"""

from __future__ import annotations

import importlib
import statistics
import sys
import time
from argparse import ArgumentParser
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any, TypeAlias

import torch

TraceFunction: TypeAlias = Callable[[FrameType, str, Any], Any]
ROWS = ("lowland plain", "lowland sam", "lowland looksam", "lowland sampa", "two gradients")
CYCLE = 5  # LookSAM's k
MODULES = ("lowland.bench.overhead", "lowland.lab.overhead")  # where the benchmark is, and where it was


def steps_of(tree: Path, case: str) -> dict[str, Callable[[], None]]:
    """The steps of the benchmark's variants, by the code of one checkout."""
    for name in [n for n in sys.modules if n.partition(".")[0] == "lowland"]:
        del sys.modules[name]
    sys.path.insert(0, str(tree))
    try:
        module = next(importlib.import_module(m) for m in MODULES if (tree / (m.replace(".", "/") + ".py")).is_file())
    finally:
        sys.path.pop(0)
    if not Path(module.__file__ or "").is_relative_to(tree):
        raise SystemExit(f"{tree} is no checkout of lowland with {' or '.join(MODULES)}")
    steps: dict[str, Callable[[], None]] = module._variants(module.CASES[case]())
    return steps


def ratio(after: list[float], before: list[float], cycle: int) -> float:
    """The median of the pairs' ratios, for each step of the cycle, and the mean of these."""
    pairs = [a / b for a, b in zip(after, before, strict=True)]
    return statistics.fmean(statistics.median(pairs[i::cycle]) for i in range(cycle))


def measure(steps: list[Callable[[], None]], rounds: int) -> list[list[float]]:
    """The seconds of each instance's steps; who begins changes from round to round, and so does the direction."""
    seconds: list[list[float]] = [[] for _ in steps]
    for r in range(CYCLE + rounds):
        first = r % len(steps)
        order = [*range(first, len(steps)), *range(first)]
        for i in reversed(order) if r // len(steps) % 2 else order:
            start = time.perf_counter()
            steps[i]()
            if r >= CYCLE:
                seconds[i].append(time.perf_counter() - start)
    return seconds


def counts(step: Callable[[], None]) -> tuple[int, int, int]:
    """Bytecode instructions, calls into C and operators of five steps, LookSAM's cycle, after those that look closer.

    The engine looks closer at steps 0, 1, 2, 4, 8, 16, ….
    """
    for _ in range(2 * CYCLE):
        step()
    executed = calls = 0

    def trace(frame: FrameType, event: str, argument: object) -> TraceFunction:
        nonlocal executed
        frame.f_trace_opcodes, frame.f_trace_lines = True, False
        executed += event == "opcode"
        return trace

    def profile(frame: FrameType, event: str, argument: object) -> None:
        nonlocal calls
        calls += event == "c_call"

    sys.settrace(trace)
    sys.setprofile(profile)
    for _ in range(CYCLE):
        step()
    sys.settrace(None)
    sys.setprofile(None)
    for _ in range(2 * CYCLE):
        step()
    with torch.autograd.profiler.profile() as operators:
        for _ in range(CYCLE):
            step()
    return executed, calls, sum(event.name.startswith("aten::") for event in operators.function_events)


def main() -> None:
    """Print, for each variant, the second checkout's time over the first one's, and each one's over itself."""
    parser = ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("trees", nargs=2, type=lambda text: Path(text).resolve(), metavar="CHECKOUT")
    parser.add_argument("--case", default="1000-small-tensors", help="a case of lowland bench overhead")
    parser.add_argument("--rounds", type=int, default=200, help="rounds that count, a multiple of 5")
    parser.add_argument("--rows", nargs="+", choices=ROWS, default=ROWS, help="variants to measure")
    parser.add_argument("--counts", action="store_true", help="count the work of five steps instead of timing it")
    given = parser.parse_args()
    torch.set_num_threads(1)
    if given.counts:
        both = [steps_of(tree, given.case) for tree in given.trees]
        print(
            f"{'':16}  {'instructions':>26}  {'calls into C':>26}  {'operators':>26}   (before, after, change a step)"
        )
        for row in given.rows:
            cells = []
            for before, after in zip(*(counts(steps[row]) for steps in both), strict=True):
                cells.append(f"{before:10,} {after:10,} {(after - before) / CYCLE:+5.0f}".rjust(26))
            print(f"{row:16}  {'  '.join(cells)}", flush=True)
        return
    instances = [steps_of(tree, given.case) for tree in given.trees * 2]  # before, after, before, after
    print(f"{'':16}  after / before  (four pairs)                    before / before  after / after")
    for row in given.rows:
        seconds = measure([steps[row] for steps in instances], given.rounds)
        cycle = CYCLE if "looksam" in row else 1
        pairs = [ratio(seconds[after], seconds[before], cycle) for before in (0, 2) for after in (1, 3)]
        same = [ratio(seconds[i + 2], seconds[i], cycle) for i in (0, 1)]
        four = " ".join(f"{p:.4f}" for p in pairs)
        print(
            f"{row:16}  {statistics.geometric_mean(pairs):.4f}  ({four})  {same[0]:15.4f}  {same[1]:13.4f}", flush=True
        )


if __name__ == "__main__":
    main()
