"""Parts of a batch and ranks are combined exactly: every loss, cut in every way, against gradients by hand."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

import pytest
import torch
from ranks import on_ranks
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.func import functional_call
from torch.nn.functional import cross_entropy
from torch.nn.parallel import DistributedDataParallel

import lowland
from lowland.core.errors import LossError

RHO, LR, LAM = 0.5, 0.1, 0.3
TINY = 1e-12  # what lowland adds to norms that it divides by
METHODS = {
    "sam": lowland.SAM(rho=RHO),
    "sampa": lowland.SAMPa(rho=RHO, lam=LAM),
    "looksam": lowland.LookSAM(rho=RHO, k=2, alpha=0.7),
    "micro-sam": lowland.MicroSAM(rho=RHO, m=2),
}
Grad = list[Tensor]


def model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 2)).double()


def examples(seed: int, size: int = 8) -> tuple[Tensor, Tensor, Tensor]:
    """Inputs, targets and ragged weights."""
    g = torch.Generator().manual_seed(seed)
    x = torch.randn(size, 3, generator=g, dtype=torch.float64)
    w = torch.rand(size, generator=g, dtype=torch.float64) ** 3 + 0.01
    return x, torch.randint(2, (size,), generator=g), w


def each(m: Any, b: Any) -> Tensor:
    return cross_entropy(m(b[0]), b[1], reduction="none") * b[2]


def scalar(m: Any, b: Any) -> Tensor:
    return each(m, b).mean()


def counted(m: Any, b: Any) -> lowland.Loss:
    return lowland.Loss(each(m, b).sum(), b[2].sum(), aux=b[1])


LOSSES: dict[str, Callable[..., Any]] = {"each": each, "scalar": scalar, "Loss": counted}


# By hand


def gradient(loss: str, batch: Any, at: Sequence[Tensor] | None = None) -> Grad:
    """The gradient of the whole batch's loss, at the weights displaced by ``at``."""
    net = model()
    weights = {n: p.detach().clone() for n, p in net.named_parameters()}
    if at is not None:
        weights = {n: p + e for (n, p), e in zip(weights.items(), at, strict=True)}
    weights = {n: p.requires_grad_() for n, p in weights.items()}
    losses = cross_entropy(functional_call(net, weights, (batch[0],)), batch[1], reduction="none") * batch[2]
    divisor = batch[2].sum() if loss == "Loss" else len(losses)
    return list(torch.autograd.grad(losses.sum() / divisor, list(weights.values())))


def length(v: Grad) -> Tensor:
    return torch.stack([t.square().sum() for t in v]).sum().sqrt()


def ascent(g: Grad) -> Grad:
    return [RHO * t / (length(g) + TINY) for t in g]


def combined(vectors: Sequence[Grad], shares: Sequence[Any]) -> Grad:
    return [sum(s * t for s, t in zip(shares, ts, strict=True)) for ts in zip(*vectors, strict=True)]


def by_hand(method: str, loss: str, first: Any, second: Any, shards: Sequence[slice]) -> Grad:
    """What the second of two calls adds to ``.grad``, with the weights where they were."""
    if method == "micro-sam":
        parts = [[t[shard] for t in second] for shard in shards]
        grads = [gradient(loss, part, ascent(gradient(loss, part))) for part in parts]
        counts = [part[2].sum() if loss == "Loss" else len(part[2]) for part in parts]
        return combined(grads, [n / sum(counts) for n in counts])
    g = gradient(loss, second)
    if method == "sam":
        return gradient(loss, second, ascent(g))
    before = gradient(loss, first)
    if method == "sampa":
        ahead = [-LR * t for t in before]
        return combined([gradient(loss, first, ascent(before)), gradient(loss, second, ahead)], [1 - LAM, LAM])
    there = gradient(loss, first, ascent(before))  # LookSAM refreshed in the first call
    inner = sum((a * b).sum() for a, b in zip(there, before, strict=True)) / length(before) ** 2
    rest = [a - inner * b for a, b in zip(there, before, strict=True)]
    return [a + 0.7 * length(g) * r / (length(rest) + TINY) for a, r in zip(g, rest, strict=True)]


# By lowland


def engine_on(method: str, loss: str, wrap: Any = None, **options: Any) -> lowland.Engine:
    net = model()
    net = net if wrap is None else wrap(net)
    return lowland.Engine(METHODS[method], net, torch.optim.SGD(net.parameters(), lr=LR), LOSSES[loss], **options)


def two_calls(engine: lowland.Engine, first: Any, second: Any) -> tuple[Grad, Tensor]:
    engine.backward(first)
    engine.optimizer.zero_grad()
    loss = engine.backward(second)
    assert engine.loss is loss
    return [p.grad.clone() for p in engine.params if p.grad is not None], loss


def on_rank(method: str, loss: str, mesh: bool, size: int) -> tuple[Grad, Tensor]:
    place = init_device_mesh("cpu", (2, 2), mesh_dim_names=("probe", "data")) if mesh else None
    data = init_device_mesh("cpu", (2,), mesh_dim_names=("data",)) if place is None else place["data"]
    rank, half = data.get_local_rank(), size // 2
    first, second = ([t[rank * half : (rank + 1) * half] for t in examples(i, size)] for i in (1, 2))

    def wrap(net: nn.Module) -> nn.Module:
        return DistributedDataParallel(net, process_group=data.get_group())

    options = {} if place is None else {"mesh": place["probe"]}
    return two_calls(engine_on(method, loss, wrap, **options), tuple(first), tuple(second))


def same(found: Grad, expected: Grad) -> None:
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-12)  # sums in another order


def cut(batch: Any, *ends: int) -> lowland.Parts:
    edges = [0, *ends, len(batch[0])]
    return lowland.Parts([tuple(t[a:b] for t in batch) for a, b in pairwise(edges)])


HALVES = [slice(0, 4), slice(4, 8)]
every = pytest.mark.parametrize("method", METHODS)


@every
@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("way", ["whole", "micro_batch", "parts"])
def test_parts_of_a_batch(method: str, loss: str, way: str) -> None:
    first, second = examples(1), examples(2)
    engine = engine_on(method, loss, **({"micro_batch": 3} if way == "micro_batch" else {}))
    given = (cut(first, 1, 6), cut(second, 5, 6)) if way == "parts" else (first, second)
    if loss == "scalar" and (way != "whole" or method == "micro-sam"):
        with pytest.raises(LossError, match=r"a mean, shape \(\), for a part; return one loss.*lowland\.Loss"):
            engine.backward(given[0])
        assert engine.step == 0
        return
    found, value = two_calls(engine, *given)
    same(found, by_hand(method, loss, first, second, HALVES))
    losses = each(model(), second)
    plain = losses.sum() / (second[2].sum() if loss == "Loss" else 8)
    if method != "sampa":  # whose loss is that of the lookahead
        torch.testing.assert_close(value, plain.detach(), rtol=1e-12, atol=0)
    if loss == "Loss":
        labels = engine.aux if isinstance(engine.aux, Tensor) else torch.cat(flat(engine.aux))
        assert torch.equal(labels, second[1])


def flat(aux: list[Any]) -> list[Tensor]:
    return [t for part in aux for t in (part if isinstance(part, list) else [part])]


@every
@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("mesh", [False, True], ids=["two", "two-by-two"])
def test_ranks(method: str, loss: str, mesh: bool) -> None:
    if loss == "scalar" and method == "micro-sam":
        pytest.skip("a mean is not cut, as tested above")
    expected = by_hand(method, loss, examples(1), examples(2), [slice(i, i + 2) for i in range(0, 8, 2)])
    answers = on_ranks(4 if mesh else 2, on_rank, method, loss, mesh, 8)
    for found, value in answers:
        same(found, expected)
        if loss == "Loss":
            assert torch.equal(value, answers[0][1])  # of all ranks together


def accumulated(loss: str, sizes: Sequence[int]) -> Grad:
    """Ranks whose parts differ in number of examples: rank r has sizes[r] of the batch."""
    data = init_device_mesh("cpu", (2,))
    start = sum(sizes[: data.get_local_rank()])
    batch = [t[start : start + sizes[data.get_local_rank()]] for t in examples(2)]
    engine = engine_on("sam", loss, lambda net: DistributedDataParallel(net))
    engine.backward(cut(batch, 1))
    return [p.grad.clone() for p in engine.params if p.grad is not None]


def test_ragged_ranks_in_ragged_parts() -> None:
    whole = examples(2)
    expected = gradient("Loss", whole, ascent(gradient("Loss", whole)))
    for found in on_ranks(2, accumulated, "Loss", (5, 3)):
        same(found, expected)


def test_a_part_in_which_nothing_counts() -> None:
    x, y, w = examples(2)
    w = torch.cat([torch.zeros(3, dtype=w.dtype), w[3:]])
    engine = engine_on("sam", "Loss", micro_batch=3)
    engine.backward((x, y, w))
    same([p.grad for p in engine.params], gradient("Loss", (x, y, w), ascent(gradient("Loss", (x, y, w)))))


def test_padded_targets() -> None:
    """The fault as it was found: a mean over tokens that are not padding."""
    torch.manual_seed(3)
    net = nn.Sequential(nn.Embedding(9, 4), nn.Linear(4, 5)).double()
    ids, labels = torch.randint(9, (8, 12)), torch.randint(5, (8, 12))
    labels[torch.arange(12) >= torch.randint(1, 12, (8, 1))] = -100

    def loss(m: Any, b: Any) -> lowland.Loss:
        total = cross_entropy(m(b[0]).flatten(0, 1), b[1].flatten(), ignore_index=-100, reduction="sum")
        return lowland.Loss(total, (b[1] != -100).sum())

    engine = lowland.Engine(lowland.Plain(), net, torch.optim.SGD(net.parameters(), lr=0.1), loss, micro_batch=2)
    found = engine.backward((ids, labels))
    expected = cross_entropy(net(ids).flatten(0, 1), labels.flatten(), ignore_index=-100)
    torch.testing.assert_close(found, expected.detach(), rtol=1e-13, atol=0)
    same([p.grad for p in engine.params], list(torch.autograd.grad(expected, list(net.parameters()))))
