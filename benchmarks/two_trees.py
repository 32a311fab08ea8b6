"""What a change costs per step: two checkouts of lowland in one process, whose steps take turns.

Two runs of ``lowland bench overhead`` differ by 1 to 3 % on a shared machine, even with the same code. Here each step
of one checkout stands beside the same step of the other, and the order of the two changes from round to round. The row
"two gradients" is code without lowland in both: what it differs from 1 is the measurement's own error.

    git worktree add /tmp/before 90bdc41
    OMP_NUM_THREADS=1 python benchmarks/two_trees.py /tmp/before . --case 1000-small-tensors
"""

from __future__ import annotations

import importlib
import statistics
import sys
import time
from argparse import ArgumentParser
from collections.abc import Callable
from pathlib import Path

import torch

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


def main() -> None:
    """Print, for each variant, the second checkout's time over the first one's."""
    parser = ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("trees", nargs=2, type=lambda text: Path(text).resolve(), metavar="CHECKOUT")
    parser.add_argument("--case", default="1000-small-tensors", help="a case of lowland bench overhead")
    parser.add_argument("--rounds", type=int, default=100, help="rounds that count, a multiple of 5")
    given = parser.parse_args()
    torch.set_num_threads(1)
    variants = [steps_of(tree, given.case) for tree in given.trees]
    seconds: dict[str, tuple[list[float], list[float]]] = {row: ([], []) for row in ROWS}
    for r in range(CYCLE + given.rounds):
        for row in ROWS:
            for i in (0, 1) if r % 2 == 0 else (1, 0):
                start = time.perf_counter()
                variants[i][row]()
                if r >= CYCLE:
                    seconds[row][i].append(time.perf_counter() - start)
    for row, (before, after) in seconds.items():
        print(f"{row:16}  {ratio(after, before, CYCLE if 'looksam' in row else 1):.4f}")


if __name__ == "__main__":
    main()
