"""Host values on a device, without a wait; "meta" stands for a GPU."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from waiting import NoWaiting, WaitError

from lowland import Loss
from lowland.core import shards, transfer
from lowland.core.loss import terms

META = torch.device("meta")


def test_the_guard_sees_what_waits() -> None:
    far, near = torch.ones(2, device="meta"), torch.ones(2)
    for waits in (
        lambda: near.to("meta"),
        lambda: far.copy_(near),
        lambda: torch.tensor([0, 1], device="meta"),
        lambda: torch.as_tensor(2.0, device="meta"),
        lambda: far[0].item(),
        lambda: bool(far[0] > 0),
    ):
        with NoWaiting(), pytest.raises(WaitError):
            waits()
    with NoWaiting() as guard:
        near.to("meta", non_blocking=True)
        far.copy_(near, non_blocking=True)
        near.clone(), far + 1, torch.full((), 2.0, device="meta")
    assert guard.copies == 2


def test_a_tensor_goes_to_a_device_without_a_wait() -> None:
    with NoWaiting() as guard:
        assert transfer.to_device(torch.ones(3), META).device == META
    assert guard.copies == 1
    t = torch.ones(3)
    assert transfer.to_device(t, t.device) is t


def test_it_goes_through_pinned_memory_where_a_device_has_streams(monkeypatch: pytest.MonkeyPatch) -> None:
    log: list[str] = []

    def pin(t: torch.Tensor) -> torch.Tensor:
        log.append("pin")
        return t

    def to(t: torch.Tensor, device: torch.device, non_blocking: bool) -> torch.Tensor:
        log.append(f"to {device}{'' if non_blocking else ', waiting'}")
        return t

    monkeypatch.setattr(torch.Tensor, "pin_memory", pin)
    monkeypatch.setattr(torch.Tensor, "to", to)
    for device in ("cuda:1", "xpu:0", "mps"):
        transfer.to_device(torch.ones(1), torch.device(device))
    assert log == ["pin", "to cuda:1", "pin", "to xpu:0", "to mps, waiting"]
    log.clear()
    transfer.to_device(torch.ones(1, device="meta"), torch.device("cpu"))  # its values are read at once
    assert log == ["to cpu, waiting"]


@pytest.mark.parametrize("value", [3, 2.5, torch.tensor(3), torch.tensor(2.5)])
def test_a_number_on_a_device(value: Any) -> None:
    here = transfer.scalar(value, torch.float64, torch.device("cpu"))
    assert torch.equal(here, torch.as_tensor(value, dtype=torch.float64))
    with NoWaiting():
        there = transfer.scalar(value, torch.float64, META)
    assert (there.device, there.dtype, there.shape) == (META, torch.float64, ())


@pytest.mark.parametrize("count", [12, 12.0, torch.tensor(12)])
def test_a_count_of_the_host_does_not_wait(count: Any) -> None:
    total = torch.ones((), device="meta")
    with NoWaiting():
        read = terms(Loss(total, count), 4)
    assert isinstance(read.count, torch.Tensor)
    assert read.count.device == META


def test_the_norm_of_a_partly_sharded_vector_does_not_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    vector = [torch.zeros(1)] * 4
    group: Any = "ranks"
    monkeypatch.setattr(shards, "ordinary", lambda v: False)
    monkeypatch.setattr(shards, "_groups", lambda v: iter([(group, [0, 2])]))
    monkeypatch.setattr(shards, "_summed", lambda x, group: x * 2)
    assert shards.total(torch.tensor([1.0, 2.0, 3.0, 4.0]), vector).tolist() == [2.0, 2.0, 6.0, 4.0]
    shards._indices.cache_clear()
    with NoWaiting() as guard:
        for _ in range(3):
            shards.total(torch.ones(4, device="meta"), vector)
    assert guard.copies == 1  # the indices stay on the device
