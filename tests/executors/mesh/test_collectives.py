"""Values that ranks compare, with mocks in place of other ranks and their GPUs."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Any

import pytest
import torch
import torch.distributed as dist

from lowland.core.errors import RankError
from lowland.executors.mesh import collectives
from lowland.executors.mesh.exchange import Exchange
from lowland.planner.memory import LiveTensors


class Shown:
    """Stands for a method with a tensor on a GPU."""

    def __init__(self, text: str) -> None:
        self.text = text

    def __repr__(self) -> str:
        return self.text


def two_ranks(monkeypatch: pytest.MonkeyPatch, other: dict[str, str]) -> list[str]:
    """The other rank tells this; what is done is noted."""
    log: list[str] = []

    class Current(AbstractContextManager[None]):
        def __init__(self, device: torch.device) -> None:
            self.device = device

        def __enter__(self) -> None:
            log.append(f"{self.device} is current")

        def __exit__(self, *error: object) -> None:
            log.append("no longer")

    def gather(found: list[Any], own: Any, group: Any) -> None:
        log.append("objects")
        found[:] = [other, own]

    for kind in (torch.cuda, torch.xpu):
        monkeypatch.setattr(kind, "device", Current)
    monkeypatch.setattr(dist, "all_gather_object", gather)
    for name, value in {"get_world_size": 2, "get_rank": 1, "get_process_group_ranks": [0, 1]}.items():
        monkeypatch.setattr(dist, name, lambda group, v=value: v)
    return log


GROUP: Any = "all"


@pytest.mark.parametrize("device", ["cuda:1", "xpu:3"])
def test_objects_go_through_the_model_s_own_device(device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    log = two_ranks(monkeypatch, {"seed": "0"})
    collectives.agree({"seed": 0}, [GROUP, GROUP], torch.device(device))
    assert log == [f"{device} is current", "objects", "no longer"] * 2
    with pytest.raises(RankError, match="seed must be the same"):
        collectives.agree({"seed": 1}, [GROUP], torch.device(device))
    assert log[-1] == "no longer"


@pytest.mark.parametrize("device", [None, torch.device("cpu")])
def test_objects_on_a_host(device: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    log = two_ranks(monkeypatch, {"seed": "0"})
    collectives.agree({"seed": 0}, [GROUP], device)
    assert log == ["objects"]


def test_a_failed_exchange_asks_on_the_model_s_device(monkeypatch: pytest.MonkeyPatch) -> None:
    class Bare(Exchange):
        def give(self, grads: Any, count: int) -> None: ...

        def buckets(self) -> Any: ...

    log = two_ranks(monkeypatch, {"buckets sent before backward failed": "0"})
    params: Any = [Shown("a parameter")]
    params[0].device = torch.device("cuda:1")
    exchange = Bare(params, GROUP)
    exchange.arm(None, 2)
    exchange.disarm()
    exchange.arm(None, 2)
    assert log == ["cuda:1 is current", "objects", "no longer"]


def test_tensors_on_each_rank_s_own_device_are_equal(monkeypatch: pytest.MonkeyPatch) -> None:
    two_ranks(monkeypatch, {"method": "Mine(v=tensor([1., 2.]))"})
    collectives.agree({"method": Shown("Mine(v=tensor([1., 2.], device='cuda:1'))")}, [GROUP])
    with pytest.raises(RankError, match="method must be the same"):
        collectives.agree({"method": Shown("Mine(v=tensor([1., 3.], device='cuda:1'))")}, [GROUP])


def whole_checksum(t: torch.Tensor) -> torch.Tensor:
    """The checksum, computed from all entries at once."""
    integers = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}[t.element_size()]
    bits = t.contiguous().reshape(-1).view(integers).long()
    return (bits * (torch.arange(len(bits)) % 8191 + 1)).sum()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.bool, torch.int64])
@pytest.mark.parametrize("shape", [(), (0,), (7,), (100,), (101,), (250,), (3, 101), (500,)])
def test_a_checksum_in_chunks_is_that_of_all_entries(
    shape: tuple[int, ...], dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    t = (torch.randn(shape, dtype=torch.float64) * 100).to(dtype)
    expected, before = whole_checksum(t), t.clone()
    assert torch.equal(collectives._mark(t), expected)
    monkeypatch.setattr(collectives, "_PERIOD", 25)
    monkeypatch.setattr(collectives, "_CHUNK", 100)
    in_chunks = collectives._mark(t)
    monkeypatch.setattr(collectives, "_CHUNK", 1000)
    assert torch.equal(collectives._mark(t), in_chunks)
    assert torch.equal(t, before)
    assert torch.equal(collectives._mark(t.t()) if t.dim() == 2 else in_chunks, collectives._mark(t.t().clone()))


def test_a_checksum_sees_a_bit_in_every_chunk() -> None:
    t = torch.zeros(collectives._CHUNK * 2 + 5)
    none = collectives._mark(t)
    for place in (0, collectives._CHUNK - 1, collectives._CHUNK, len(t) - 1):
        other = t.clone()
        other[place] = 1e-30
        assert not torch.equal(collectives._mark(other), none)
    assert torch.equal(whole_checksum(torch.arange(len(t))), collectives._mark(torch.arange(len(t))))


def test_a_checksum_needs_no_memory_of_the_tensor_s_size() -> None:
    t = torch.ones(6 * collectives._CHUNK)  # 100 MB
    with LiveTensors() as meter:
        collectives._mark(t)
    assert (
        meter.peak < 1.1 * t.nbytes
    )  # 8-byte integers of one chunk, their weights, and what makes these; it was 6 times the tensor
