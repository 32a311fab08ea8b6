"""Programs on two processes under torchrun: every rank runs the same cases and writes what they gave."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

TESTS = Path(__file__).parents[1]


def two_processes(program: str, out: Path) -> dict[str, list[Any]]:
    """What every case of a program gave, for each rank; an error is its text."""
    path = os.pathsep.join([str(TESTS.parent), str(TESTS), os.environ.get("PYTHONPATH", "")])
    env = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    done = subprocess.run(
        [*command, str(Path(__file__).parent / program), str(out)], env=env, capture_output=True, text=True, timeout=500
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    ranks = [json.loads((out / f"rank{r}.json").read_text()) for r in range(2)]
    return {name: [rank[name] for rank in ranks] for name in ranks[0]}


def follow(ranks: list[Any], bound: float) -> None:
    """Assert that every rank has followed its trajectory up to ``bound``, and that all have the same weights."""
    for rank in ranks:
        assert isinstance(rank, list), rank
        distance, equal = rank
        assert distance < bound
        assert equal, "ranks are equal bit for bit"


def run(cases: dict[str, Callable[[Path], Any]]) -> None:
    """The program's part: run the cases, each in a folder of its own that all ranks share."""
    import torch
    import torch.distributed as dist

    torch.set_num_threads(1)
    out, found = Path(sys.argv[1]), {}
    for name, case in cases.items():
        folder = out / "".join(c if c.isalnum() else "_" for c in name)
        folder.mkdir(exist_ok=True)
        torch.manual_seed(0)
        try:
            found[name] = case(folder)
        except Exception as error:  # every rank goes on to the next case
            trace = traceback.format_exc().splitlines()[-4:]
            found[name] = f"{type(error).__name__}: {error}" + " | ".join(trace)
    rank = int(os.environ["RANK"])
    (out / f"rank{rank}.json").write_text(json.dumps(found))
    if dist.is_initialized():
        dist.barrier()
        dist.destroy_process_group()
    # What the ranks found is written. On a busy machine a thread of gloo may abort a process while Python shuts down,
    # even after a barrier: see docs/parallel.md, "The end".
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)


def same_on_all_ranks(model: Any) -> bool:
    """Whether weights are equal bit for bit."""
    import torch
    import torch.distributed as dist

    flat = torch.cat([p.detach().reshape(-1) for p in model.parameters()])
    each = [torch.empty_like(flat) for _ in range(dist.get_world_size())]
    dist.all_gather(each, flat)
    return all(torch.equal(each[0], e) for e in each)
