"""Which GPU a rank takes, with mocks in place of GPUs."""

from __future__ import annotations

import re

import pytest
import torch

from lowland import lab, parallel
from lowland.core.errors import ArgumentError


@pytest.mark.parametrize(
    ("device", "ranks", "place", "current"),
    [
        ("cuda", 1, "cuda", None),  # without a number it is the current one already, and set_device would refuse it
        ("auto", 1, "cuda", None),
        ("cuda:1", 1, "cuda:1", "cuda:1"),
        ("auto", 2, "cuda:1", "cuda:1"),
    ],
)
def test_the_current_device(device, ranks, place, current, monkeypatch):
    def set_device(found):
        torch.cuda._utils._get_device_index(found)  # as the real one does
        chosen.append(found)

    chosen = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "set_device", set_device)
    for name, value in {"WORLD_SIZE": ranks, "RANK": ranks - 1, "LOCAL_RANK": ranks - 1}.items():
        monkeypatch.setenv(name, str(value))
    assert parallel.place(device) == torch.device(place)
    assert chosen == ([] if current is None else [torch.device(current)])


SEVERAL = {"WORLD_SIZE": "2", "RANK": "1"}


@pytest.mark.parametrize(
    ("device", "environment", "words"),
    [
        ("cuda:0", {**SEVERAL, "LOCAL_RANK": "1"}, "must be cuda or auto where each rank takes a GPU, but is 'cuda:0'"),
        (torch.device("cuda:1"), {**SEVERAL, "LOCAL_RANK": "1"}, "where each rank takes a GPU, but is 'cuda:1'"),
        ("cuda", SEVERAL, "LOCAL_RANK must say which GPU of its host a rank takes, but is not set"),
        ("auto", SEVERAL, "LOCAL_RANK must say"),
        ("auto", {**SEVERAL, "LOCAL_RANK": "2"}, "cuda:2 is not: this process sees 2 GPUs; start as many ranks on a"),
        ("cuda:2", {}, "cuda:2 is not: this process sees 2 GPUs; choose another"),
        (1, {}, "device must be cpu, cuda or auto, but is '1'"),
    ],
)
@pytest.mark.parametrize("door", ["place", "world", "run"])
def test_gpus_that_are_refused(door, device, environment, words, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "set_device", lambda found: pytest.fail(f"{found} was taken"))
    for name in ("WORLD_SIZE", "RANK", "LOCAL_RANK"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)

    def run():
        task, budget = lab.load("digits"), lab.Budget(kind="steps", limit=1)
        lab.RunConfig(
            task=task,
            model="mlp",
            method="sam",
            seed=0,
            recipe=lab.Recipe(lr=0.1, epochs=1, batch_size=8),
            budget=budget,
            device=device,
        )

    def world():
        with parallel.world(device=device):
            pass

    with pytest.raises(ArgumentError, match=re.escape(words)):
        {"place": lambda: parallel.place(device), "world": world, "run": run}[door]()


def test_a_device_may_be_an_object():
    assert parallel.place(torch.device("cpu")) == torch.device("cpu")


class Groups:
    """Stands for torch.distributed on two ranks; it notes what is done."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.log: list[str] = []
        self.joined = False
        dist = parallel.dist

        def join(backend: str, **options: object) -> None:
            self.log.append(f"join {backend} with {options.get('device_id')}")
            self.joined = True

        def leave(name: str) -> None:
            self.log.append(name)
            self.joined = False

        monkeypatch.setattr(dist, "is_initialized", lambda: self.joined)
        monkeypatch.setattr(dist, "rendezvous", lambda *args, **options: iter([("store", 1, 2)]))
        monkeypatch.setattr(dist, "PrefixStore", lambda prefix, store: store)
        monkeypatch.setattr(dist, "init_process_group", join)
        monkeypatch.setattr(dist, "get_rank", lambda: 1)
        monkeypatch.setattr(dist, "barrier", lambda: self.log.append("barrier"))
        monkeypatch.setattr(dist, "destroy_process_group", lambda: leave("destroy"))
        monkeypatch.setattr(dist.distributed_c10d, "_abort_process_group", lambda: leave("abort"), raising=False)
        monkeypatch.setattr("torch.distributed.device_mesh.init_device_mesh", lambda kind, *args, **options: kind)
        for name, value in {**SEVERAL, "LOCAL_RANK": "1"}.items():
            monkeypatch.setenv(name, value)
        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
        monkeypatch.setattr(torch.cuda, "set_device", lambda device: None)


def test_nccl_is_told_the_gpu_of_its_rank(monkeypatch):
    groups = Groups(monkeypatch)
    with parallel.world(device="cuda") as ranks:
        assert (ranks.device, ranks.mesh) == (torch.device("cuda:1"), "cuda")
    assert groups.log == ["join nccl with cuda:1", "barrier", "destroy"]


def test_gloo_needs_no_device(monkeypatch):
    groups = Groups(monkeypatch)
    with parallel.world(device="cpu"):
        pass
    assert groups.log == ["join gloo with None", "barrier", "destroy"]


@pytest.mark.parametrize(("device", "ends"), [("cuda", ["abort"]), ("cpu", ["destroy"])])
@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_after_an_error_nccl_does_not_wait_for_other_ranks(device, ends, error, monkeypatch):
    groups = Groups(monkeypatch)
    with pytest.raises(error), parallel.world(device=device):
        raise error
    assert groups.log[1:] == ends


def test_a_torch_that_cannot_abort_destroys(monkeypatch):
    groups = Groups(monkeypatch)
    monkeypatch.delattr(parallel.dist.distributed_c10d, "_abort_process_group")
    with pytest.raises(RuntimeError), parallel.world(device="cuda"):
        raise RuntimeError
    assert groups.log[1:] == ["destroy"]
