"""Gradients that are exchanged through shared memory: the bits of messages, and nothing stale or left behind."""

from __future__ import annotations

import os
from contextlib import ExitStack, suppress
from typing import Any

import pytest
import torch
import torch.distributed as dist
from meshed import engine_on, steps
from problems import TripError, batch, loss_fn, net, sgd
from ranks import SWITCH, Ranks, on_ranks
from torch import Tensor, nn

import lowland
from lowland import AsyncSAM, MicroSAM, SAMPa
from lowland.core.errors import RankError
from lowland.executors.mesh import shared_memory as shared
from lowland.executors.mesh.mesh import Mesh
from lowland.executors.mesh.messages import Messages
from lowland.executors.mesh.shared_memory import ALIGNED, SharedMemory, common_memory, needed

pytestmark = pytest.mark.skipif(not hasattr(os, "memfd_create"), reason="needs Linux")
METHODS = {"sampa": SAMPa(), "async-sam": AsyncSAM(), "micro-sam": MicroSAM(m=3)}


class Mixed(nn.Module):
    """Weights of two precisions, a scalar, and layers laid out channels last."""

    def __init__(self) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.first = nn.Linear(5, 7)
            self.gain = nn.Parameter(torch.tensor(1.5, dtype=torch.float64))
            self.image = nn.Conv2d(7, 6, 1).to(memory_format=torch.channels_last)
            self.norm = nn.BatchNorm1d(6)
            self.last = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.tanh(self.first(x.float()))[:, :, None, None]
        x = self.norm(self.image(x).flatten(1))
        return self.last(x * self.gain.float()).double()


def trained(key: str, kind: str) -> dict[str, Tensor]:
    model = Mixed() if kind == "mixed" else net(norm=True)
    engine = engine_on(METHODS[key], model)
    steps(engine, 10, sizes=(8, 11))
    expected = Messages if os.environ[SWITCH] == "0" else SharedMemory
    assert type(engine.executor.inner._exchange) is expected  # type: ignore[attr-defined]
    return dict(model.state_dict())


@pytest.mark.parametrize("kind", ["mixed", "uniform"])
@pytest.mark.parametrize("key", METHODS)
def test_the_bits_are_those_of_messages(key: str, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    found = []
    for switch in ("1", "0"):
        monkeypatch.setenv(SWITCH, switch)
        found += on_ranks(2, trained, key, kind)
    for name, value in found[0].items():
        assert all(torch.equal(other[name], value) for other in found[1:]), name


def exchange_of(params: list[Tensor]) -> SharedMemory:
    group = dist.group.WORLD
    assert group is not None
    memory = common_memory(group, needed(params, dist.get_world_size()))
    assert memory is not None
    return SharedMemory(params, group, memory)


def given(rounds: int, *shapes: tuple[int, ...]) -> None:
    """Two exchanges in a row never share a place, and every vector is that of its own round."""
    rank = dist.get_rank()
    params = [torch.zeros(shape, dtype=torch.float64 if len(shape) > 1 else torch.float32) for shape in shapes]
    exchange, held = exchange_of(params), []
    for number in range(rounds):
        exchange.arm(None, exchange.size)
        mine = [torch.full_like(p, 100.0 * number + rank) for p in params]
        exchange.give(mine, exchange.size)
        dist.barrier()
        found = exchange.take(mine, exchange.size)
        held.append((number, found))
    for number, found in held:  # they are copies: what was given later has not reached them
        for rank, vector in enumerate(found):
            assert all(bool((t == 100.0 * number + rank).all()) for t in vector)
    assert exchange.bytes == rounds * sum(p.numel() * p.element_size() for p in params)


@pytest.mark.parametrize("count", [2, 4])
@pytest.mark.parametrize("shapes", [((3,), (2, 2)), ((0,), (), (2, 0)), ((0,),)], ids=str)
def test_vectors_are_those_of_their_round(count: int, shapes: Any) -> None:
    on_ranks(count, given, 7, *shapes)


def of_one() -> None:
    rank, exchange = dist.get_rank(), exchange_of([torch.zeros(3)])
    mine = [torch.full((3,), float(rank + 1))]
    exchange.give(mine, 1)
    dist.barrier()
    ((found,),) = exchange.take(mine, 1)
    assert found.tolist() == [1.0] * 3
    assert exchange.bytes == (12 if rank == 0 else 0)


def test_of_one_probe_the_first_rank_s_answer_counts() -> None:
    on_ranks(2, of_one)


def no_memory(kind: str) -> str:
    """The ranks that cannot share memory, or do not want to."""
    rank = dist.get_rank()
    with pytest.MonkeyPatch.context() as patch:
        if kind == "full" and rank == 0:

            def full(fd: int, offset: int, size: int) -> None:
                raise OSError(28, "No space left on device")

            patch.setattr(os, "posix_fallocate", full)
        elif kind == "other system" and rank == 0:
            patch.delattr(os, "memfd_create")
        elif kind == "other host" and rank == 1:  # there, a process of this number has another file
            mapped = shared._mapped
            patch.setattr(shared, "_mapped", lambda path, token, size: mapped(path, bytes(ALIGNED), size))
        elif kind == "no such process" and rank == 1:
            patch.setattr(shared, "_mapped", lambda path, token, size: MAPPED("/proc/0/fd/0", token, size))
        elif kind == "one says no" and rank == 1:
            patch.setenv(SWITCH, "0")
        model = net()
        engine = engine_on(SAMPa(), model)
        steps(engine, 3)
    return type(engine.executor.inner._exchange).__name__  # type: ignore[attr-defined]


MAPPED = shared._mapped


@pytest.mark.parametrize("kind", ["full", "other system", "other host", "no such process", "one says no"])
def test_without_common_memory_all_ranks_take_messages(kind: str) -> None:
    assert on_ranks(2, no_memory, kind) == ["Messages", "Messages"]


def nothing_left() -> list[str]:
    engine = engine_on(SAMPa(), net())
    steps(engine, 2)
    found = []
    for name in os.listdir("/proc/self/fd"):
        with suppress(OSError):  # the folder's own
            found.append(os.readlink(f"/proc/self/fd/{name}"))
    return [file for file in found if "lowland" in file]


def test_no_file_stays_open() -> None:
    assert on_ranks(2, nothing_left) == [[], []]


def failing(where: str) -> dict[str, Tensor]:
    """Steps that fail on both ranks, each at its own place, do not change the others."""
    rank, model = dist.get_rank(), net()
    engine = engine_on(SAMPa(), model)
    for step in range(5):
        steps(engine, 1, step)
        if where == "nowhere":
            continue

        def fail(*_: Any) -> None:
            raise TripError

        layer = model.first if (rank == 0) == (where == "apart") else model.last
        handle = layer.weight.register_hook(fail)
        with pytest.raises(TripError):
            engine.backward(batch(step + 1))
        handle.remove()
    return dict(model.state_dict())


@pytest.mark.parametrize("where", ["apart", "together"])
def test_failed_steps_leave_nothing_behind(where: str) -> None:
    calm, other = (on_ranks(2, failing, place) for place in ("nowhere", where))
    for name, value in calm[0].items():
        assert all(torch.equal(rank[name], value) for rank in [*calm, *other]), name


def out_of_step(when: str) -> list[str]:
    """Rank 0 is interrupted in the middle of an exchange, and goes on alone."""
    model = net()
    engine = engine_on(SAMPa(), model)
    steps(engine, 2)
    exchange = engine.executor.inner._exchange  # type: ignore[attr-defined]
    if dist.get_rank() == 0:
        give = exchange.give

        def interrupted(grads: Any, count: Any) -> None:
            if when == "after":
                give(grads, count)
            raise TripError

        exchange.give = interrupted
        with pytest.raises(TripError):
            engine.backward(batch(2))
        exchange.give = give
    told = []
    for step in (2, 3, 4):
        try:
            engine.backward(batch(step))
            told.append("nothing")
        except (RankError, RuntimeError) as error:
            told.append(f"{type(error).__name__}: {error}")
    return told


@pytest.mark.slow
@pytest.mark.parametrize("when", ["before", "after"])
def test_a_rank_that_goes_on_alone_is_noticed(when: str) -> None:
    ranks = Ranks(2)
    try:
        found = ranks.run(out_of_step, when)
    except (EOFError, AssertionError):
        found = []  # gloo ends a process that gets a message of another size than it waits for
    finally:
        ranks.end()
    if when == "after":
        assert len(found) == 2
    for told in found:  # no step is taken any more, on any rank
        assert all("RankError: all groups of a mesh must take the same steps" in text for text in told)


def abandoned() -> list[list[float]]:
    """All ranks give up the third exchange, when one of them may still be reading the second."""
    rank, exchange = dist.get_rank(), exchange_of([torch.zeros(1)])
    found, places = [], []
    for number, complete in enumerate([True, True, False, True]):
        mine = [torch.full((1,), 10.0 * number + rank)]
        places.append(exchange.buckets()[0].mine.data_ptr())
        exchange.give(mine, 2)
        dist.barrier()
        if complete:
            found.append([float(vector[0]) for vector in exchange.take(mine, 2)])
    first, second, third, again = places
    assert first == third == again != second
    return found


def test_an_abandoned_exchange_is_repeated_in_its_own_place() -> None:
    assert on_ranks(2, abandoned) == [[[0.0, 1.0], [10.0, 11.0], [30.0, 31.0]]] * 2


def test_what_is_no_memory_is_not_read() -> None:
    reading, writing = os.pipe()
    os.write(writing, bytes(200))
    assert shared._mapped(f"/proc/self/fd/{reading}", bytes(ALIGNED), 128) is None
    assert len(os.read(reading, 300)) == 200  # nobody's data are taken, and nobody is waited for
    os.close(writing)
    os.close(reading)


def test_memory_of_another_size_is_not_mapped() -> None:
    with ExitStack() as stack:
        made = shared._made(256, stack)
        assert made is not None
        assert shared._mapped(*made, 512) is None
        mapped = shared._mapped(*made, 256)
        assert mapped is not None
        assert len(mapped) == 256


def unlike() -> str:
    """An executor that is a mesh compares ranks, as a mesh does that is given as one."""
    group = dist.group.WORLD
    assert group is not None
    model = net(odd=dist.get_rank() == 0)
    try:
        lowland.Engine(SAMPa(), model, sgd(model), loss_fn, executor=Mesh(group))
    except RankError as error:
        return str(error)
    return "nothing"


def test_ranks_with_other_models_are_refused() -> None:
    assert all("must be the same on all ranks" in told for told in on_ranks(2, unlike))
