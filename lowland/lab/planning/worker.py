"""One rank of ``lowland plan``: measures the layouts of all ranks.

Started as ``python -m lowland.lab.planning.worker ARGUMENTS OUT``, with the arguments as JSON.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import torch

from lowland.lab.planning.plan_task import Training, prepared
from lowland.parallel import world
from lowland.planner import planning as planner
from lowland.planner import ranks, record


def main() -> int:
    """Measure, and write the survey.

    Returns:
        The exit code.
    """
    arguments, out = json.loads(sys.argv[1]), Path(sys.argv[2])
    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    training = Training(**arguments["training"])
    with world(device=training.device) as here:
        ready = prepared(training.config(), arguments["methods"])
        found = planner.surveyed(ready.subject, ready.methods, seconds=arguments["seconds"], tick=ranks.say_done)
        if here.first:
            out.write_text(json.dumps(record.to_json(found)), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(ranks.refusing(main))
