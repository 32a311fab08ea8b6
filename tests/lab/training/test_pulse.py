from __future__ import annotations

import torch
import torch.distributed as dist
from ranks import on_ranks

from lowland.lab.training.pulse import Pulse
from lowland.parallel import World, world


def test_a_single_rank_hears_itself_at_once() -> None:
    with world("probe=2,data=2", "cpu") as alone:
        assert Pulse(alone).beat([1.0, 2.0]) == [1.0, 2.0]


def beats() -> list[list[float]]:
    rank = dist.get_rank()
    pulse = Pulse(World(rank, 2, torch.device("cpu"), None, {}))
    heard = [pulse.beat([float(rank), step]) for step in range(3)]
    pulse.close()
    return heard


def test_what_ranks_tell_is_heard_one_step_later() -> None:
    assert on_ranks(2, beats) == [[[0, 0], [1, 0], [1, 2]]] * 2
