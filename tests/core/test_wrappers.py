"""Wrappers of models, and ranks that nobody averages: right wherever they sit, or refused by name."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.distributed as dist
from problems import batch, loss_fn, net, sgd
from ranks import on_ranks
from torch import Tensor, nn
from torch.distributed.algorithms.join import Join
from torch.distributed.device_mesh import init_device_mesh
from torch.nn.parallel import DistributedDataParallel

import lowland
from lowland.core.errors import LowlandError
from lowland.core.wrappers import short_names
from lowland.methods import make

DDP = DistributedDataParallel


class Shell(nn.Module):
    """A module around a wrapped one, as Fabric's and timm's."""

    def __init__(self, inner: nn.Module, name: str = "_forward_module") -> None:
        super().__init__()
        self.add_module(name, inner)
        self.inside = name

    def forward(self, x: Tensor) -> Tensor:
        return self.get_submodule(self.inside)(x)


def said(run: Callable[[], Any]) -> str:
    try:
        run()
    except LowlandError as error:
        return f"{type(error).__name__}: {error}"
    return "nothing"


def part(step: int) -> Any:
    return tuple(t[4 * dist.get_rank() :][:4] for t in batch(step))


def trained(model: Any, loss: Any = loss_fn, text: str = "sam", mine: Any = part, **options: Any) -> lowland.Engine:
    modules = model if isinstance(model, list) else [model]
    optimizer = torch.optim.SGD([p for m in modules for p in m.parameters()], lr=0.1, momentum=0.9)
    engine = lowland.Engine(make(text), model, optimizer, loss, **options)
    for step in range(4):
        engine.backward(mine(step))
        optimizer.step()
        optimizer.zero_grad()
    return engine


def apart(m: Any, b: Any) -> Tensor:
    return loss_fn(lambda x: m[1](torch.tanh(m[0](x))), b)


def pair() -> list[nn.Module]:
    torch.manual_seed(0)
    return [nn.Linear(5, 4).double(), nn.Linear(4, 3).double()]


def everywhere() -> dict[str, Any]:
    shells = {
        "fabric": lambda: Shell(DDP(net())),
        "task": lambda: Shell(DDP(net()), "model"),
        "inside": lambda: DDP(Shell(net(), "model")),
    }
    found: dict[str, Any] = {}
    for name, build in shells.items():
        engine = trained(build())
        found[name] = engine.names, [p.detach() for p in engine.params]
    engine = trained([DDP(m) for m in pair()], apart)
    found["list"] = engine.names, [p.detach() for p in engine.params]
    return found


@pytest.mark.slow
def test_wrappers_are_found_wherever_they_sit() -> None:
    bare = trained(net(), mine=batch)
    plain = trained(pair(), apart, mine=batch)
    prefixes = {"fabric": "", "task": "model.", "inside": "model."}
    for found in on_ranks(2, everywhere):
        for name, prefix in prefixes.items():
            names, weights = found[name]
            assert names == [prefix + n for n in bare.names]
            for a, b in zip(weights, bare.params, strict=True):
                torch.testing.assert_close(a, b.detach(), rtol=0, atol=1e-12)
        names, weights = found["list"]
        assert names == plain.names
        for a, b in zip(weights, plain.params, strict=True):
            torch.testing.assert_close(a, b.detach(), rtol=0, atol=1e-12)


def refusals() -> dict[str, str]:
    found: dict[str, str] = {}
    half = nn.Sequential(DDP(nn.Linear(5, 3)), nn.Linear(3, 3)).double()
    found["outside"] = said(lambda: lowland.Engine(lowland.SAM(), half, sgd(half), loss_fn))
    other = dist.new_group([0, 1])
    two = pair()
    two = [DDP(two[0]), DDP(two[1], process_group=other)]
    found["groups"] = said(lambda: trained(two, apart))
    found["alone"] = said(lambda: trained(net()))
    found["meant"] = said(lambda: trained(net(), allow_unaveraged=True))
    for text in ("plain", "sam", "micro-sam", "sl-sam", "esam", "gsam"):
        static = DDP(net(), static_graph=True)
        found[f"static {text}"] = said(lambda m=static, t=text: trained(m, text=t))
    static = DDP(net(), static_graph=True)
    found["static micro_batch"] = said(lambda: trained(static, micro_batch=2))
    static = DDP(net(), static_graph=True)
    halves = lowland.Parts([[t[:2] for t in part(0)], [t[2:] for t in part(0)]])
    engine = lowland.Engine(lowland.SAM(), static, sgd(static), loss_fn)
    found["static parts"] = said(lambda: engine.backward(halves))
    joined = DDP(net())
    engine = lowland.Engine(lowland.SAM(), joined, sgd(joined), loss_fn)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with Join([joined], enable=True):
            found["join"] = said(lambda: engine.backward(part(0)))
            for _ in range(1):  # Join expects a forward of every rank
                joined(part(0)[0]).sum().backward()
    found["join afterwards"] = said(lambda: engine.backward(part(0)))
    again = DDP(joined.module)
    engine = lowland.Engine(lowland.SAM(), again, sgd(again), loss_fn)
    found["wrapped anew"] = said(lambda: engine.backward(part(0)))
    return found


def test_what_is_refused_and_what_is_not() -> None:
    for found in on_ranks(2, refusals):
        assert (
            "must hold all trainable parameters, but only a part of the model is wrapped and 1.weight"
            in found["outside"]
        )
        assert "averaged over the same ranks" in found["groups"]
        assert "UsageError: gradients must be averaged over all 2 ranks, but" in found["alone"]
        assert "allow_unaveraged=True" in found["alone"]
        for key in ("meant", "static plain", "static sam", "static gsam", "wrapped anew"):
            assert found[key] == "nothing", key
        for key in ("micro-sam", "sl-sam", "esam", "micro_batch", "parts"):
            assert "must not have static_graph=True" in found[f"static {key}"], key
        assert "must not run inside Join" in found["join"]
        assert "wrap a model that was in Join anew" in found["join afterwards"]


def static(text: str) -> dict[str, Any]:
    """The weights with and without a static graph, or what was said, for wrappers in several places."""
    found: dict[str, Any] = {}
    for place in ("shell", "list", "set later"):
        for graph in (False, True):
            torch.manual_seed(0)
            early = {"static_graph": graph and place != "set later"}
            ddps = [DDP(m, **early) for m in (pair() if place == "list" else [net()])]
            model = {"shell": Shell(ddps[0], "model"), "list": ddps}.get(place, ddps[0])
            if graph and place == "set later":
                optimizer = torch.optim.SGD(ddps[0].parameters(), lr=0.1)
                engine = lowland.Engine(make(text), model, optimizer, loss_fn)
                ddps[0]._set_static_graph()
                found[f"{place} {graph}"] = said(lambda e=engine: e.backward(part(0)))
                continue
            loss = apart if place == "list" else loss_fn
            weights: list[Tensor] = []
            words = said(lambda m=model, f=loss, w=weights: w.extend(trained(m, f, text).params))
            found[f"{place} {graph}"] = [p.detach() for p in weights] if words == "nothing" else words
    return found


@pytest.mark.parametrize("text", ["sam", "gsam", "looksam:k=2"])
def test_static_graphs_wherever_they_sit(text: str) -> None:
    for found in on_ranks(2, static, text):
        for place in ("shell", "list"):
            for a, b in zip(found[f"{place} True"], found[f"{place} False"], strict=True):
                torch.testing.assert_close(a, b, rtol=0, atol=1e-12)
        assert found["set later True"] == "nothing"


@pytest.mark.parametrize("text", ["micro-sam:m=2", "gsam:ascent_gradient=local", "late:start=2,inner=sl-sam"])
def test_static_graphs_that_are_refused_wherever_they_sit(text: str) -> None:
    for found in on_ranks(2, static, text):
        for place in ("shell", "list"):
            assert "must not have static_graph=True" in found[f"{place} True"]
        late = text.startswith("late")  # its first steps are plain
        assert found["set later True"] == "nothing" if late else "must not have static" in found["set later True"]


def synchronized() -> dict[str, str]:
    mesh = init_device_mesh("cpu", (2,), mesh_dim_names=("probe",))
    found = {}
    for name, group in {"world": None, "own": [dist.new_group([r]) for r in range(2)][dist.get_rank()]}.items():
        model = nn.Sequential(nn.Linear(5, 3), nn.SyncBatchNorm(3, process_group=group)).double()
        found[name] = said(lambda m=model: lowland.Engine(lowland.SAMPa(), m, sgd(m), loss_fn, mesh=mesh))
    return found


def test_synchronized_norms_on_a_probe_mesh() -> None:
    for found in on_ranks(2, synchronized):
        assert "ParameterError: SyncBatchNorm must not span the groups of a probe mesh" in found["world"]
        assert found["own"] == "nothing"


def test_shards_that_are_not_on_their_mesh_are_refused() -> None:
    class Mesh:
        device_type = "cuda"

    model = nn.Linear(3, 2)
    model.weight.device_mesh, model.weight.placements = Mesh(), ()
    with pytest.raises(LowlandError, match=r"weight is on cpu and its mesh on cuda, as with CPUOffloadPolicy"):
        lowland.Engine(lowland.SAM(), model, sgd(model), loss_fn)


def test_names_keep_apart_what_wrappers_would_mix() -> None:
    model = nn.Module()
    model.a = nn.DataParallel(nn.Linear(1, 1))
    model.b = nn.Module()
    model.b.module = nn.Linear(1, 1)  # a name of the user's own
    assert short_names(model, [n for n, _ in model.named_parameters()]) == [
        "a.weight", "a.bias", "b.module.weight", "b.module.bias"
    ]  # fmt: skip
