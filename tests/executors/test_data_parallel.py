"""Every method under DistributedDataParallel, fully_shard, and ranks that the engine averages over."""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest
import torch
from conformance import ALL, PARTIAL, engine_of, model_for
from lockstep import Lockstep
from problems import batch
from ranks import on_ranks
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel

STEPS = 20
FLAT = 1e-10
LOCAL = "gsam:ascent_gradient=local"


def parts(step: int, count: int, dtype: torch.dtype) -> list[Any]:
    return [batch(100 * rank + step, dtype=dtype) for rank in range(count)]


def trained(
    text: str, wrapper: str, shape: tuple[int, ...], kinds: dict[str, Any], dtype: torch.dtype, first: str = "replicate"
) -> Any:
    """Train on this rank, its part of every batch, and give back whole tensors.

    In a mesh of two dimensions the first one is the engine's, the other the wrapper's.
    """
    torch.manual_seed(0)
    model: nn.Module = model_for(text, dtype=dtype, **kinds)
    names = {1: ("data",), 2: (first, "data")}[len(shape)]
    mesh = init_device_mesh("cpu", shape, mesh_dim_names=names)
    data = mesh["data"]
    own = mesh[first] if len(shape) > 1 else None
    if wrapper.startswith("ddp"):
        options = {"find_unused_parameters": "odd" in kinds, "gradient_as_bucket_view": wrapper == "ddp-views"}
        model = DistributedDataParallel(model, process_group=data.get_group(), **options)
    elif wrapper == "fsdp":
        for layer in (model.first,) if "odd" in kinds else (model.first, model.second):  # tied ones stay together
            fully_shard(layer, mesh=data)
        fully_shard(model, mesh=data)
    elif wrapper == "own":
        own = init_device_mesh("cpu", shape, mesh_dim_names=("replicate",))
    engine = engine_of(text, model, mesh=own)
    rank, count = torch.distributed.get_rank(), torch.distributed.get_world_size()
    if first == "probe":  # both groups read the same batches
        rank, count = data.get_local_rank(), data.size()
    losses = []
    for step in range(STEPS):
        losses.append(engine.backward(parts(step, count, dtype)[rank]))
        engine.optimizer.step()
        engine.optimizer.zero_grad()
    state = {n.removeprefix("module."): t for n, t in model.state_dict().items()}
    whole = {n: t.full_tensor() if isinstance(t, DTensor) else t for n, t in state.items()}
    return {"state": whole, "losses": torch.stack(losses), "step": engine.step}


def by_hand(text: str, count: int, kinds: dict[str, Any], dtype: torch.dtype, apart: Any) -> Any:
    """The same by replicas in this process; how ranks exchange gradients makes no difference to it."""
    apart = None if apart is None else tuple(map(tuple, apart))
    return _by_hand(text, count, tuple(kinds.items()), dtype, apart)


@cache
def _by_hand(text: str, count: int, kinds: Any, dtype: torch.dtype, apart: Any) -> Any:
    torch.manual_seed(0)
    replicas = Lockstep(lambda m: engine_of(text, m), model_for(text, dtype=dtype, **dict(kinds)), count, apart)
    losses = []
    for step in range(STEPS):
        losses.append(replicas.backward(parts(step, count, dtype)))
        replicas.step()
    return {
        "state": replicas.engines[0].model.state_dict(),
        "losses": [torch.stack(x) for x in zip(*losses, strict=True)],
    }


def check(found: list[Any], expected: Any, close: float) -> None:
    for name, value in expected["state"].items():
        for rank in found:
            assert torch.equal(rank["state"][name], found[0]["state"][name]), f"{name} differs between ranks"
        torch.testing.assert_close(found[0]["state"][name], value, rtol=close, atol=close)
    for rank, losses in zip(found, expected["losses"], strict=True):
        torch.testing.assert_close(rank["losses"], losses, rtol=close, atol=close)


@pytest.mark.parametrize("text", ALL)
@pytest.mark.parametrize("wrapper", ["ddp", "fsdp"])
def test_every_method_on_two_ranks(text: str, wrapper: str) -> None:
    if wrapper == "fsdp" and text == "esam:mask=element":
        with pytest.raises(AssertionError, match=r"mask must be 'tensor' where parameters are sharded"):
            on_ranks(2, trained, text, wrapper, (2,), {}, torch.float64)
        return
    kinds: dict[str, Any] = {} if text.startswith("sam-on") else {"norm": True}
    together = [[0, 1]] if wrapper == "fsdp" else None
    expected = by_hand(text, 2, kinds, torch.float64, together)
    check(on_ranks(2, trained, text, wrapper, (2,), kinds, torch.float64), expected, FLAT)


@pytest.mark.parametrize(
    "text", ["plain", "sam", LOCAL, "micro-sam", "looksam:k=3", "sl-sam:s=0.4,alpha_p=0.01", "esam"]
)
@pytest.mark.parametrize("wrapper", ["ddp", "ddp-views", "own", "fsdp"])
def test_in_single_precision(text: str, wrapper: str) -> None:
    together = [[0, 1]] if wrapper == "fsdp" else None
    kinds = {"norm": nn.LayerNorm}  # BatchNorm over two examples magnifies every rounding
    expected = by_hand(text, 2, kinds, torch.float32, together)
    check(on_ranks(2, trained, text, wrapper, (2,), kinds, torch.float32), expected, 1e-6)


@pytest.mark.parametrize("text", ["sam", LOCAL, "sampa", "micro-sam", "sl-sam:s=0.4,alpha_p=0.01", "esam", "k-sam"])
@pytest.mark.parametrize("wrapper", ["ddp", "own", "fsdp"])
def test_tied_frozen_and_unused_parameters(text: str, wrapper: str) -> None:
    together = [[0, 1]] if wrapper == "fsdp" else None
    expected = by_hand(text, 2, {"odd": True}, torch.float64, together)
    check(on_ranks(2, trained, text, wrapper, (2,), {"odd": True}, torch.float64), expected, FLAT)


@pytest.mark.slow
@pytest.mark.parametrize("text", ["sam", LOCAL, "micro-sam", "sampa", "k-sam"])
def test_shard_groups_perturb_for_themselves(text: str) -> None:
    """HSDP: fully_shard inside a group of two, the engine averages over the two groups."""
    expected = by_hand(text, 4, {"norm": True}, torch.float64, [[0, 1], [2, 3]])
    check(on_ranks(4, trained, text, "fsdp", (2, 2), {"norm": True}, torch.float64), expected, FLAT)


@pytest.mark.slow
@pytest.mark.usefixtures("way")
@pytest.mark.parametrize("text", ["sampa", "sampa:lam=0", "async-sam", "micro-sam:m=2"])
@pytest.mark.parametrize("wrapper", ["ddp", "ddp-views", "fsdp"])
@pytest.mark.parametrize(("dtype", "close"), [(torch.float64, FLAT), (torch.float32, 1e-6)])
def test_two_groups_of_two(text: str, wrapper: str, dtype: torch.dtype, close: float) -> None:
    """Probes divided over two groups, each data-parallel over two ranks."""
    kinds = {"norm": True} if dtype == torch.float64 else {"norm": nn.LayerNorm}
    expected = by_hand(text, 2, kinds, dtype, [[0, 1]] if wrapper == "fsdp" else None)
    expected = expected | {"losses": expected["losses"] * 2}
    check(on_ranks(4, trained, text, wrapper, (2, 2), kinds, dtype, "probe"), expected, close)


WHOLE = [text for text in ALL if not text.startswith((*PARTIAL, "micro-sam", "sam-on", "async-sam"))]


@pytest.mark.parametrize("text", WHOLE)
def test_halves_on_two_ranks_are_the_whole_batch_on_one(text: str) -> None:
    torch.manual_seed(0)
    engine = engine_of(text, model_for(text))
    for step in range(STEPS):
        engine.backward([torch.cat(x) for x in zip(*parts(step, 2, torch.float64), strict=True)])
        engine.optimizer.step()
        engine.optimizer.zero_grad()
    for rank in on_ranks(2, trained, text, "own", (2,), {}, torch.float64):
        for name, value in engine.model.state_dict().items():
            torch.testing.assert_close(rank["state"][name], value, rtol=FLAT, atol=FLAT)
