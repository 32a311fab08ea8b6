"""Batches of any kind, cutters, and passes of one's own."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from conformance import ALL, base_for, method_of
from hand import close, grads, norm, sgd, square
from problems import parted
from torch import Tensor, nn

import lowland
from lowland.core.errors import ArgumentError, BatchError, LossError, UsageError


def test_batches_of_more_than_tensors() -> None:
    batch = {"x": torch.randn(4, 3), "y": torch.randn(4), "name": ["a", "b", "c", "d"], "k": 2.0}

    def loss(model: Any, b: Any) -> Tensor:
        assert len(b["name"]) == len(b["x"])
        return (model(b["x"])[:, 0] * b["k"] - b["y"]).square()

    def gradient(net: nn.Module, at: Any = None) -> list[Tensor]:
        weights = {n: p.detach() + (0 if at is None else at[n]) for n, p in net.named_parameters()}
        weights = {n: w.requires_grad_() for n, w in weights.items()}
        out = torch.func.functional_call(net, weights, (batch["x"],))[:, 0]
        return list(torch.autograd.grad((out * 2.0 - batch["y"]).square().mean(), list(weights.values())))

    for method in (lowland.SAM(rho=0.1), lowland.MicroSAM(m=2), lowland.KSAM(), lowland.ESAM(), lowland.SAMPa()):
        torch.manual_seed(0)
        net = nn.Linear(3, 1)
        engine = lowland.Engine(method, net, sgd(net), loss)
        engine.backward(batch)
        engine.load_state_dict(engine.state_dict())
        if isinstance(method, lowland.SAM):
            g = gradient(net)
            close(grads(net), gradient(net, {n: 0.1 * t / norm(g) for n, t in zip(("weight", "bias"), g, strict=True)}))


class Graph:
    """Nodes (7, 3), edges (2, 10), targets (2, 1): two graphs in one batch."""

    def __init__(self) -> None:
        g = torch.Generator().manual_seed(5)
        self.nodes = torch.randn(7, 3, generator=g)
        self.edges = torch.randint(7, (2, 10), generator=g)
        self.targets = torch.randn(2, 1, generator=g)
        self.of = torch.tensor([0, 0, 0, 1, 1, 1, 1])


def on_graphs(model: Any, b: Any) -> Tensor:
    passed = b.nodes.index_add(0, b.edges[1], b.nodes[b.edges[0]])
    pooled = torch.zeros(2, 3).index_add(0, b.of, passed)
    return (model(pooled) - b.targets).square().mean(1)


@pytest.mark.parametrize("text", [t for t in ALL if not t.startswith(("sam-on", "bisam", "adasam"))])
def test_graphs_go_to_methods_that_do_not_cut(text: str) -> None:
    net, graph = nn.Linear(3, 1), Graph()
    engine = lowland.Engine(method_of(text), net, base_for(text)(net), parted(text, on_graphs))
    if any(key in text for key in ("micro-sam", "k-sam", "ausam", "esam", "async-sam")):
        with pytest.raises(BatchError):
            engine.backward(graph)
    else:
        engine.backward(graph)
        assert engine.step == 1


def test_one_own_cutter() -> None:
    class Pairs:
        def size(self, batch: Any) -> int:
            return len(batch) // 2

        def take(self, batch: Any, index: Any) -> Any:
            places = range(self.size(batch))[index] if isinstance(index, slice) else index.tolist()
            return [t for i in places for t in batch[2 * i : 2 * i + 2]]

    def loss(model: Any, b: Any) -> Tensor:
        return torch.stack([(model(x) - y).square().mean() for x, y in zip(b[::2], b[1::2], strict=True)])

    ragged = [t for n in (3, 1, 2, 5) for t in (torch.randn(n, 3), torch.randn(n, 2))]
    for method in (lowland.MicroSAM(m=2), lowland.KSAM(k=2), lowland.SAM()):
        net = nn.Linear(3, 2)
        engine = lowland.Engine(method, net, sgd(net), loss, cut=Pairs(), micro_batch=1)
        engine.backward(ragged)
        assert engine.step == 1
    with pytest.raises(ArgumentError, match=r"cut must have the methods size\(batch\) and take"):
        lowland.Engine(lowland.SAM(), net, sgd(net), loss, cut=3)


def test_adopt_refuses_another_batch_than_the_pass_s() -> None:
    net, x = nn.Linear(3, 2), torch.randn(4, 3)
    engine = lowland.Engine(lowland.MicroSAM(m=2), net, sgd(net))
    with pytest.raises(UsageError, match=r"run the model on p\.batch and say so"):  # noqa: PT012
        for p in engine.passes(x):
            with p:
                loss = square(net, x).mean()
                loss.backward()
                p.adopt(loss)
    engine = lowland.Engine(lowland.SAMPa(), net, sgd(net))
    reports = []
    for _ in range(2):
        for p in engine.passes(x):
            with p:
                loss = square(net, p.batch).mean()
                loss.backward()
                p.adopt(loss, batch=p.batch)
            reports.append(p.reports)
    assert reports == [False, True] * 2
    torch.testing.assert_close(engine.loss, loss.detach(), rtol=0, atol=0)


@pytest.mark.parametrize("kind", ["mean", "loss"])
def test_a_part_that_is_adopted_says_what_it_weighs(kind: str) -> None:
    """With a bare mean of each of m parts the gradient was m times too long, without a word."""
    net, x = nn.Linear(3, 2), torch.randn(5, 3)
    engine = lowland.Engine(lowland.MicroSAM(rho=0.1, m=2), net, sgd(net), square)
    told = engine.backward(x)
    expected = [p.grad.clone() for p in net.parameters()]
    net.zero_grad()
    engine = lowland.Engine(lowland.MicroSAM(rho=0.1, m=2), net, sgd(net))

    def run() -> None:
        for p in engine.passes(x):
            with p:
                mean = square(net, p.batch).mean()
                mean.backward()
                p.adopt(mean if kind == "mean" else lowland.Loss(mean * len(p.batch), len(p.batch)), batch=p.batch)

    if kind == "mean":
        with pytest.raises(LossError, match=r"p\.adopt\(lowland\.Loss\(mean \* count, count\), batch=p\.batch\)"):
            run()
        return
    run()
    torch.testing.assert_close(engine.loss, told)
    for p, g in zip(net.parameters(), expected, strict=True):
        torch.testing.assert_close(p.grad, g)


def test_a_share_does_not_say_what_a_part_of_a_batch_weighs() -> None:
    """A share is among the losses of a pass; what the pass weighs in the step, a mean does not tell."""
    net, x = nn.Linear(3, 2), torch.randn(4, 3)
    engine = lowland.Engine(lowland.MicroSAM(m=2), net, sgd(net))
    with pytest.raises(LossError, match="what a part of a batch weighs"):  # noqa: PT012
        for p in engine.passes(x):
            with p:
                p.backward(square(net, p.batch).mean(), share=1.0, part=p.batch)
