"""What a method keeps of one rank is loaded there, and nowhere else."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
import torch.distributed as dist
from problems import batch, loss_fn, net, sgd
from ranks import on_ranks
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel

import lowland
from lowland.core.errors import StateError


def engine(method: lowland.Method, ranks: bool = True) -> lowland.Engine:
    model = net()
    model = DistributedDataParallel(model) if ranks else model
    return lowland.Engine(method, model, sgd(model), loss_fn)


def exchanged(key: str) -> list[str]:
    """What is said to a state of one's own, of the other rank, of one process, and on one process."""
    method = {"sampa": lowland.SAMPa(), "late": lowland.Late(start=0, inner=lowland.SAMPa()), "sam": lowland.SAM()}[key]
    ours, alone = engine(method), engine(method, ranks=False)
    alone.work.replicas._checked = True  # meant to be alone
    ours.backward(batch(dist.get_rank()))
    alone.backward(batch(0))
    states: list[Any] = [None, None]
    dist.all_gather_object(states, ours.state_dict())
    mine, other = states[dist.get_rank()], states[1 - dist.get_rank()]
    said = []
    for target, state in ((ours, mine), (ours, other), (ours, alone.state_dict()), (alone, mine)):
        try:
            target.load_state_dict(state)
            said.append("loaded")
        except StateError as error:
            said.append(str(error))
    return said


@pytest.mark.parametrize("key", ["sampa", "late"])
def test_a_held_batch_belongs_to_its_rank(key: str) -> None:
    for rank, said in enumerate(on_ranks(2, exchanged, key)):
        assert said[0] == "loaded"
        assert f"on rank {1 - rank} of 2, but this is rank {rank} of 2; save a file for every rank" in said[1]
        assert f"on one process, but this is rank {rank} of 2" in said[2]
        assert f"on rank {rank} of 2, but this is one process" in said[3]


def test_what_is_the_same_on_all_ranks_is_loaded_anywhere() -> None:
    assert on_ranks(2, exchanged, "sam") == [["loaded"] * 4] * 2


@dataclass(frozen=True, kw_only=True)
class Table(lowland.Method):
    """Keeps a tensor of which lowland does not know how it is cut."""

    needs_batch: ClassVar[bool] = True

    def init(self, params: Any) -> dict[str, Any]:
        return {"table": torch.zeros(4), "t": 0}

    def plan(self, engine: Any, batch: Any) -> Any:
        here = yield lowland.Probe(batch)
        return here.loss, here.grad


def test_tensors_of_methods_of_one_s_own_are_never_divided() -> None:
    shares = [{"table": torch.ones(4), "t": 3}] * 2
    for method in (Table(), lowland.Late(start=0, inner=Table())):
        with pytest.raises(StateError, match=r"'table' of .*Table.* belongs to one of 2 ranks.*reshard\(shares, num"):
            method.reshard(shares, 0, 1)
    assert lowland.LookSAM().reshard([{"t": 3}] * 2, 0, 1) == {"t": 3}


def test_held_batches_are_put_together_and_cut_anew() -> None:
    held = [{"batch": (torch.arange(3) + 3 * i, None), "missed": ["a"]} for i in range(2)]
    found = [lowland.SAMPa().reshard(held, number, 3) for number in range(3)]
    assert [f["batch"][0].tolist() for f in found] == [[0, 1], [2, 3], [4, 5]]
    assert all(f["missed"] == ["a"] for f in found)
    with pytest.raises(StateError, match=r"but one of 2 ranks holds a str; resume on 2 ranks"):
        lowland.SAMPa().reshard([{"batch": {"x": torch.ones(2), "id": "a"}, "missed": []}] * 2, 0, 1)


def test_parts_that_are_held_are_saved_and_loaded() -> None:
    x, y, i = batch(0)
    parts = lowland.Parts([(x[:3], y[:3], i[:3]), (x[3:], y[3:], i[3:])])
    ours, other = engine(lowland.SAMPa(), ranks=False), engine(lowland.SAMPa(), ranks=False)
    ours.backward(parts)
    other.load_state_dict(ours.state_dict())
    assert isinstance(other.memory["batch"], lowland.Parts)
    for each in (ours, other):
        each.optimizer.zero_grad()
        each.backward(batch(1))
    assert all(torch.equal(a.grad, b.grad) for a, b in zip(ours.params, other.params, strict=True))


def resumed(key: str, folder: str) -> float:
    """Two steps, a file, two steps; and the last two from the file: the largest difference of the weights."""
    method = {"sampa": lowland.SAMPa(), "friendly": lowland.FriendlySAM(), "looksam": lowland.LookSAM(k=3)}[key]
    path, found = f"{folder}/{dist.get_rank()}.pt", list[Any]()
    for loads in (False, True):
        model = net()
        fully_shard(model)
        optimizer = sgd(model)
        engine = lowland.Engine(method, model, optimizer, loss_fn)
        for step in range(4):
            if step == 2 and not loads:
                torch.save((engine.state_dict(), model.state_dict(), optimizer.state_dict()), path)
            if step == 2 and loads:
                state, weights, momentum = torch.load(path, weights_only=True)
                engine.load_state_dict(state)
                model.load_state_dict(weights)
                optimizer.load_state_dict(momentum)
            engine.backward(batch(2 * step + dist.get_rank()))
            optimizer.step()
            optimizer.zero_grad()
        found.append([p.full_tensor() for p in model.parameters()])
    return max(float((a - b).abs().max()) for a, b in zip(*found, strict=True))


@pytest.mark.parametrize("key", ["sampa", "friendly", "looksam"])
def test_vectors_of_shards_go_to_a_file_and_back(key: str, tmp_path: Path) -> None:
    """SAMPa keeps gradients as fully_shard gives them, views of one storage, which torch.save refuses."""
    assert on_ranks(2, resumed, key, str(tmp_path)) == [0.0, 0.0]


def loaded_from(folder: str, count: int) -> str:
    """What is said on this many ranks to the state that the first of two ranks has written."""
    path = Path(folder) / "0.pt"
    model = net()
    if dist.is_initialized():
        fully_shard(model)
    engine = lowland.Engine(lowland.LookSAM(), model, sgd(model), loss_fn)
    if count == 2:
        engine.backward(batch(dist.get_rank()))
        if dist.get_rank() == 0:
            torch.save(engine.state_dict(), path)
        return "saved"
    try:
        engine.load_state_dict(torch.load(path, weights_only=True))
    except StateError as error:
        return str(error)
    return "loaded"


@pytest.mark.slow
def test_shards_are_loaded_on_as_many_ranks(tmp_path: Path) -> None:
    """Otherwise a rank took another's shard for its own."""
    on_ranks(2, loaded_from, str(tmp_path), 2)
    parameter = r"^vector 'g_v' of \S+ must .* which is "
    saved = r"but is \(Shard\(dim=0\),\) on a mesh of \(2,\); resume on as many ranks, or save a sharded checkpoint"
    for said in on_ranks(3, loaded_from, str(tmp_path), 3):
        assert re.search(parameter + r"\(Shard\(dim=0\),\) on a mesh of \(3,\), " + saved, said), said
    assert re.search(parameter + "not sharded, " + saved, loaded_from(str(tmp_path), 1))
