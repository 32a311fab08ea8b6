"""The ranks of ``lowland bench plan``: one survey of a case.

Started as ``python -m lowland.bench.planning.worker CASE BATCH ROUNDS METHODS OUT``, with methods as one text each,
separated by spaces.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch

from lowland.bench.planning.cases import CASES, sizes
from lowland.methods import make
from lowland.parallel import world
from lowland.planner import ranks, record
from lowland.planner.layout import layouts
from lowland.planner.survey import survey

WIDEST = 2  # probe groups: the methods of the table ask for at most two probes together, or for four parts of a batch


def main() -> int:
    """Measure, and write the survey.

    Returns:
        The exit code.
    """
    case, batch, rounds, methods, out = sys.argv[1:]
    torch.set_num_threads(1)
    with world(device="cpu") as here:
        subject = CASES[case].subject(int(batch))
        chosen = [layout for layout in layouts(here.size, int(batch)) if layout.probe <= WIDEST]
        result = survey(
            subject,
            {text: make(text) for text in methods.split()},
            chosen,
            {layout: sizes(int(batch), layout) for layout in chosen},
            rounds=int(rounds),
            checked=True,
            tick=ranks.say_done,
        )
        if here.first:
            Path(out).write_text(json.dumps(record.to_json(result)), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(ranks.refusing(main))
