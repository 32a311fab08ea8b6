"""The blocks of docs/integrations.md about shards, on two processes; run by torchrun from test_page.py."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from integrations import launch
from integrations.test_page import BLOCKS
from integrations.trajectories import Trajectory

ROWS, STEPS = 8, 7


class Blocks(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.blocks = nn.ModuleList([nn.Sequential(nn.Linear(6, 6), nn.Tanh()) for _ in range(2)])
        self.head = nn.Linear(6, 3)
        self.double()

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = x + block(x)
        out: Tensor = self.head(x)
        return out


def batches(first: int, last: int) -> list[tuple[Tensor, Tensor]]:
    """Batches of both ranks together."""
    made = []
    for step in range(first, last):
        g = torch.Generator().manual_seed(step)
        made.append((torch.randn(ROWS, 6, generator=g).double(), torch.randint(0, 3, (ROWS,), generator=g)))
    return made


def own(first: int, last: int) -> list[tuple[Tensor, Tensor]]:
    """This rank's rows of them."""
    return [(x[dist.get_rank() :: 2], y[dist.get_rank() :: 2]) for x, y in batches(first, last)]


def ran(title: str, names: dict[str, Any]) -> dict[str, Any]:
    exec(compile(BLOCKS[title].replace('"cuda"', '"cpu"'), f"docs/integrations.md, {title}", "exec"), names)
    return names


def apart(a: Any, b: Any) -> float:
    whole = [[p.full_tensor() if hasattr(p, "full_tensor") else p for p in m.parameters()] for m in (a, b)]
    return max(float((x.detach() - y.detach()).abs().max()) for x, y in zip(*whole, strict=True))


def trajectory(folder: Path) -> float:
    names, twin = ran("fsdp2", {"model": Blocks(), "loader": own(0, STEPS)}), Blocks()
    assert all(hasattr(p, "full_tensor") for p in names["model"].parameters())
    base = torch.optim.AdamW(twin.parameters(), lr=1e-2)
    hand = Trajectory("looksam", twin, base, lambda m, b: cross_entropy(m(b[0]), b[1]), period=5)
    for batch in batches(0, STEPS):
        base.zero_grad()
        hand.backward(batch)
        nn.utils.clip_grad_norm_(twin.parameters(), 1.0)
        base.step()
    return apart(names["model"], twin)


def resume(folder: Path) -> float:
    """Three steps after a checkpoint, and the same from the checkpoint in new objects."""
    whole = ran("fsdp2", {"model": Blocks(), "loader": own(0, STEPS), "folder": str(folder)})
    ran("fsdp2 save", whole)
    again = ran("fsdp2 load", ran("fsdp2", {"model": Blocks(), "loader": [], "folder": str(folder)}))
    for names in (whole, again):
        for batch in own(STEPS, STEPS + 3):
            names["engine"].backward(batch)
            nn.utils.clip_grad_norm_(names["model"].parameters(), 1.0)
            names["optimizer"].step()
            names["optimizer"].zero_grad()
    assert again["engine"].step == STEPS + 3
    return apart(whole["model"], again["model"])


CASES: dict[str, Callable[[Path], Any]] = {"trajectory": trajectory, "resume": resume}

if __name__ == "__main__":
    dist.init_process_group("gloo")
    launch.run(CASES)
