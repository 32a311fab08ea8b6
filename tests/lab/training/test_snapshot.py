"""What is saved finds its owner again by name, whatever the names are, quickly, and however the owner lays it out."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from ranks import on_ranks
from torch import Tensor, nn

import lowland
from lowland import vec
from lowland.core.errors import StateError
from lowland.core.shards import gathered, is_sharded
from lowland.lab.training import checkpoint, packing
from lowland.lab.training.snapshot import Snapshot

NAMES = ["a", "b", "a/b", "b/a", "step", "b/step", "exp_avg/b"]  # suffixes and prefixes of each other


class Named(nn.Module):
    """Parameters of these names, all of one shape, so that no shape tells them apart."""

    def __init__(self, names: list[str], seed: int, shape: tuple[int, ...] = (3, 2)) -> None:
        super().__init__()
        draw = torch.Generator().manual_seed(seed)
        for name in names:
            self.register_parameter(name, nn.Parameter(torch.randn(shape, generator=draw)))
        self.register_buffer("seen/b", torch.zeros(2))

    def forward(self, x: Tensor) -> Tensor:
        return torch.stack([(p * x).sum() * i for i, p in enumerate(self.parameters(), 1)]).square().sum()


@dataclass(frozen=True, kw_only=True)
class Keeper(lowland.Method):
    """Keeps vectors under keys which, with the parameters' names, make the same text."""

    keys: tuple[str, ...] = ("k", "k/a", "k%2Fa")

    def init(self, params: Any) -> dict[str, Any]:
        return {key: vec.zeros(params) for key in self.keys}

    def plan(self, engine: Any, batch: Any) -> Any:
        here = yield lowland.Probe(batch)
        for i, key in enumerate(self.keys, 1):
            engine.memory[key] = vec.scale(here.grad, float(i))
        return here.loss, here.grad


def training(
    seed: int,
    names: list[str] = NAMES,
    kind: Any = torch.optim.AdamW,
    steps: int = 0,
    method: lowland.Method = Keeper(),
) -> Any:
    """Model, optimizer and engine after some steps."""
    model = Named(names, seed)
    optimizer = kind(model.parameters(), lr=0.01)
    engine = lowland.Engine(method, model, optimizer, lambda model, x: model(x))
    for step in range(steps):
        engine.backward(torch.full((3, 2), 1.0 + step))
        optimizer.step()
        optimizer.zero_grad()
    return model, optimizer, engine


def saved_and_loaded(folder: Path, there: Any, here: Any) -> dict[str, dict[str, Tensor]]:
    before, after = Snapshot(*there), Snapshot(*here)
    path = checkpoint.save(folder, {"values": before.values()}, before.tensors(), step=1)
    state, tensors = checkpoint.load(path, after.like)
    return after.load(tensors, state["values"])


def assert_as(here: Any, there: Any, vectors: dict[str, dict[str, Tensor]]) -> None:
    """Model, optimizer state and vectors are those of ``there``, bit for bit."""
    for name, t in there[0].state_dict().items():
        assert torch.equal(here[0].state_dict()[name], t), name
    for name, p, q in zip(there[2].names, there[2].params, here[2].params, strict=True):
        assert there[1].state[p].keys() == here[1].state[q].keys(), name
        for key, value in there[1].state[p].items():
            assert torch.equal(torch.as_tensor(here[1].state[q][key]), torch.as_tensor(value)), (name, key)
    assert vectors.keys() == there[2].vector_keys
    for key in vectors:
        for name, t in zip(there[2].names, there[2].memory[key], strict=True):
            assert torch.equal(vectors[key][name], t), (key, name)


@pytest.mark.parametrize("kind", [torch.optim.AdamW, torch.optim.Adafactor, torch.optim.SGD])
def test_names_that_contain_each_other(tmp_path: Path, kind: Any) -> None:
    there, here = training(0, kind=kind, steps=3), training(1, kind=kind)
    assert_as(here, there, saved_and_loaded(tmp_path, there, here))


def test_the_names_are_those_of_the_first_version() -> None:
    found = Snapshot(*training(0, ["w"], steps=1)).tensors()
    assert {"model/w", "model/seen/b", "optimizer/w/exp_avg", "optimizer/w/step", "engine/k/w"} <= set(found)
    assert "engine/k%2Fa/w" in found  # a slash in a key; the first version could not tell it from one in a name


def test_checkpoints_of_the_first_version(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It wrote every tensor by itself, and keys as they are."""
    names, method = ["w", "v/w"], Keeper(keys=("k", "k/a"))
    there, here = training(0, names, steps=3, method=method), training(1, names, method=method)
    tensors = {n.replace("%2F", "/"): t for n, t in Snapshot(*there).tensors().items()}
    monkeypatch.setattr(packing, "pack", lambda found: (found, {}))
    path = checkpoint.save(tmp_path, {}, tensors, step=1)
    after = Snapshot(*here)
    _, read = checkpoint.load(path, after.like)
    assert read.keys() == tensors.keys()
    assert_as(here, there, after.load(read, {}))


class Counting(torch.optim.SGD):
    """Keeps a number and a text per parameter, and a tensor that has not the parameter's shape."""

    def step(self, closure: Any = None) -> None:
        for p in self.param_groups[0]["params"]:
            held = self.state[p]
            held["count"] = held.get("count", 0) + 1
            held["part/first"] = p.detach().reshape(-1)[:1].double()
            held["phase"] = "late" if held["count"] > 2 else "early"
        super().step()


def test_state_of_any_kind_comes_back(tmp_path: Path) -> None:
    there, here = training(0, kind=Counting, steps=3), training(1, kind=Counting)
    saved_and_loaded(tmp_path, there, here)
    for p, q in zip(there[2].params, here[2].params, strict=True):
        held, found = there[1].state[p], here[1].state[q]
        assert (found["count"], found["phase"]) == (3, "late") == (held["count"], held["phase"])
        assert torch.equal(found["part/first"], held["part/first"])
        assert found["part/first"].dtype == torch.float64


def test_state_that_cannot_be_read_back_is_refused() -> None:
    model, optimizer, engine = training(0, ["w"])
    optimizer.state[engine.params[0]]["odd"] = {"x": object()}
    with pytest.raises(StateError, match=r"optimizer state 'odd' of w must be a tensor.*holds a object"):
        Snapshot(model, optimizer, engine).values()


def test_what_is_missing_or_has_another_shape_is_named(tmp_path: Path) -> None:
    tensors = Snapshot(*training(0, steps=1)).tensors()
    less = {n: t for n, t in tensors.items() if n != "engine/k/a/b"}
    with pytest.raises(StateError, match="checkpoint must hold engine/k/a/b, but does not"):
        Snapshot(*training(1)).load(less, {})
    with pytest.raises(StateError, match=r"must hold model/a of shape \(3, 2\), but holds \(1,\)"):
        Snapshot(*training(1)).load(tensors | {"model/a": torch.ones(1)}, {})
    with pytest.raises(StateError, match="holds some of 'c', which is none here"):
        Snapshot(*training(1)).load(tensors | {"optimizer/c/exp_avg": torch.ones(1)}, {})


@pytest.mark.slow
def test_a_thousand_parameters_come_back_in_two_seconds(tmp_path: Path) -> None:
    names = [f"blocks_{i}/weight" for i in range(1000)]
    there, here = training(0, names, steps=1), training(1, names)
    before, after = Snapshot(*there), Snapshot(*here)
    tensors = before.tensors()
    assert len(tensors) > 5000  # model, three of AdamW, three vectors
    path = checkpoint.save(tmp_path, {}, tensors, step=1)
    begun = time.perf_counter()
    _, read = checkpoint.load(path, after.like)
    vectors = after.load(read, {})
    assert time.perf_counter() - begun < 2
    assert_as(here, there, vectors)


def test_small_tensors_lie_together_and_large_ones_apart() -> None:
    large = torch.zeros(packing.SMALL // 4 + 1)
    tensors = {
        "a": torch.arange(6.0).view(2, 3).t(),
        "b": torch.tensor(5.0),
        "c": torch.tensor([True]),
        "d": large,
        "e": torch.empty(0, 4),
    }
    packs, contents = packing.pack(tensors)
    assert packs["packed/float32"].tolist() == [0, 3, 1, 4, 2, 5, 5]
    assert packs["packed/bool"].tolist() == [True]
    assert packs["d"] is large
    assert contents["packed/float32"] == [("a", [3, 2]), ("b", []), ("e", [0, 4])]
    back = packing.unpack(packs, contents, lambda name, size, dtype: torch.empty(size, dtype=dtype))
    assert back.keys() == tensors.keys()
    assert all(torch.equal(back[n], t) and back[n].dtype == t.dtype for n, t in tensors.items())


class Rows(torch.optim.Optimizer):
    """Keeps a mean per row, sharded as the parameter is, and a plain tensor; neither has the parameter's shape."""

    def __init__(self, params: Any, lr: float) -> None:
        super().__init__(params, {"lr": lr})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        for group in self.param_groups:
            for p in group["params"]:
                held, rows = self.state[p], p.grad.square().reshape(p.shape[0], -1).mean(1, keepdim=True)
                held["rows"] = rows if "rows" not in held else 0.9 * held["rows"] + 0.1 * rows
                held["count"] = held.get("count", torch.zeros(3)) + 1
                p.sub_(p.grad / (1 + held["rows"].reshape(-1, *[1] * (p.dim() - 1))), alpha=group["lr"])


def sharded(folder: Path, kind: str, seed: int, steps: int, shard: bool) -> dict[str, Any]:
    """A training on two ranks that is saved, or, without steps, goes on from what is there."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(4, 6), nn.Linear(6, 2))
    size = torch.distributed.get_world_size() if torch.distributed.is_initialized() else 1
    if shard:
        fully_shard(model, mesh=init_device_mesh("cpu", (size,)))
    optimizer = {"adamw": torch.optim.AdamW, "rows": Rows}[kind](model.parameters(), lr=0.01)
    engine = lowland.Engine(Keeper(), model, optimizer, lambda model, x: model(x).square().mean(1))
    ranks = checkpoint.World(torch.distributed.get_rank(), size, torch.device("cpu"), None, {}) if size > 1 else None
    options = {} if ranks is None else {"world": ranks}
    snapshot = Snapshot(model, optimizer, engine)
    if steps:
        for _ in range(steps):
            engine.backward(torch.ones(2, 4))
            optimizer.step()
            optimizer.zero_grad()
        checkpoint.save(folder, {}, snapshot.tensors(), step=1, **options)
        return plain(snapshot.tensors())
    _, tensors = checkpoint.load(folder / "checkpoints" / "step-000000001", snapshot.like, **options)
    vectors = snapshot.load(tensors, {})
    found = snapshot.tensors() | {f"engine/{k.replace('%', '%25').replace('/', '%2F')}/{n}": t
                                  for k, v in vectors.items() for n, t in v.items()}  # fmt: skip
    placed = plain(found)
    engine.memory = engine.memory | {k: [v[n] for n in engine.names] for k, v in vectors.items()}
    engine.backward(torch.ones(2, 4))  # the optimizer can work with what it got
    optimizer.step()
    assert all(is_sharded(t) == (shard and not n.endswith(("/step", "/count"))) for n, t in found.items())
    return placed


def plain(tensors: dict[str, Tensor]) -> dict[str, Any]:
    return {name: gathered(t).detach().clone().tolist() for name, t in tensors.items()}


@pytest.mark.parametrize("kind", ["adamw", "rows"])
def test_state_is_laid_out_as_its_owner_lays_it_out(tmp_path: Path, kind: str) -> None:
    there = on_ranks(2, sharded, tmp_path, kind, 0, 2, True)[0]
    assert on_ranks(2, sharded, tmp_path, kind, 1, 0, True) == [there, there]
    assert sharded(tmp_path, kind, 1, 0, False) == there


@pytest.mark.parametrize("kind", ["adamw", "rows"])
def test_one_process_goes_on_as_two_that_shard(tmp_path: Path, kind: str) -> None:
    there = sharded(tmp_path, kind, 0, 2, False)
    assert on_ranks(2, sharded, tmp_path, kind, 1, 0, True) == [there, there]
