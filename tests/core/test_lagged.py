from __future__ import annotations

import io
from typing import Any

import pytest
import torch

from lowland.core import lagged as module
from lowland.core.lagged import Lagged


def test_values_come_back_one_call_later_by_name():
    lagged = Lagged()
    assert lagged.swap("a", torch.tensor(1.0)) is None
    assert lagged.swap("b", torch.tensor([1.0, 2.0])) is None
    assert lagged.swap("a", torch.tensor(3.0)) == 1.0
    assert lagged.swap("b", torch.tensor([4.0, 5.0])) == [1.0, 2.0]
    assert lagged.swap("a", torch.tensor(6.0)) == 3.0


def test_what_was_sent_does_not_change_with_the_tensor():
    lagged, tensor = Lagged(), torch.tensor(1.0, requires_grad=True)
    lagged.swap("a", tensor)
    with torch.no_grad():
        tensor.fill_(7.0)
    assert lagged.swap("a", tensor) == 1.0


def test_state_goes_on_where_it_was_taken():
    lagged, other = Lagged(), Lagged()
    lagged.swap("a", torch.tensor(1.0))
    file = io.BytesIO()
    torch.save(lagged.state_dict(), file)
    file.seek(0)
    other.load_state_dict(torch.load(file, weights_only=True))
    assert other.swap("a", torch.tensor(2.0)) == 1.0
    assert lagged.swap("a", torch.tensor(2.0)) == 1.0


def test_state_shares_no_memory():
    lagged = Lagged()
    lagged.swap("a", torch.tensor(1.0))
    state = lagged.state_dict()
    other = Lagged()
    other.load_state_dict(state)
    state["a"].fill_(9.0)
    assert lagged.swap("a", torch.tensor(0.0)) == 1.0
    assert other.swap("a", torch.tensor(0.0)) == 1.0


class Far:
    """Stands for a tensor on another device than the current one."""

    shape, dtype = (2,), torch.float32

    def __init__(self, device: str) -> None:
        self.device = torch.device(device)
        self.is_cuda = self.device.type == "cuda"

    def detach(self) -> Far:
        return self


class Host:
    """Stands for pinned memory; it notes what is done."""

    def __init__(self, log: list[str]) -> None:
        self.log = log

    def copy_(self, source: Far, non_blocking: bool) -> None:
        self.log.append(f"copy from {source.device}{'' if non_blocking else ', waiting'}")

    def tolist(self) -> list[float]:
        self.log.append("read")
        return [1.0, 2.0]


def fake_streams(monkeypatch: pytest.MonkeyPatch, kind: str) -> list[str]:
    log: list[str] = []

    class Event:
        def record(self, stream: str = "the current device's stream") -> None:
            log.append(f"event in {stream}")

        def synchronize(self) -> None:
            log.append("wait for the event")

    monkeypatch.setattr(getattr(torch, kind), "Event", Event)
    monkeypatch.setattr(getattr(torch, kind), "current_stream", lambda device=None: f"the stream of {device}")
    monkeypatch.setattr(module.torch, "empty", lambda *args, **options: Host(log))  # type: ignore[attr-defined]
    return log


@pytest.mark.parametrize("device", ["cuda:1", "cuda:0", "xpu:1"])
def test_the_event_is_in_the_stream_of_the_tensor_s_own_device(device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    log, lagged = fake_streams(monkeypatch, device[:-2]), Lagged()
    tensor: Any = Far(device)
    assert lagged.swap("a", tensor) is None
    sent = [f"copy from {device}", f"event in the stream of {device}"]
    assert log == sent
    assert lagged.swap("a", tensor) == [1.0, 2.0]
    assert log == [*sent, *sent, "wait for the event", "read"]


def test_a_device_without_streams_keeps_its_copy_until_it_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    # torch.meta does not exist, as torch.mps has no current_stream: the copy stays there, and reading it waits.
    monkeypatch.setattr(module, "read", lambda tensor: f"values on {tensor.device}")
    lagged = Lagged()
    assert lagged.swap("a", torch.empty(2, device="meta")) is None
    assert lagged.swap("a", torch.empty(2, device="meta")) == "values on meta"
