"""Captured CUDA graphs on a CPU: every replay writes outputs, gradients and running statistics into the same memory."""

from __future__ import annotations

import copy
from collections.abc import Callable, Generator
from typing import Any

import torch
from torch import Tensor, nn


class Replay(torch.autograd.Function):
    """What ``torch.cuda.make_graphed_callables`` gives: views of buffers that the next replay overwrites."""

    @staticmethod
    def forward(ctx: Any, graph: Graph, x: Tensor, *params: Tensor) -> Tensor:
        ctx.graph = graph
        with torch.enable_grad():
            graph.last = graph.twin(x.detach())
        output = graph.outputs.setdefault(tuple(graph.last.shape), torch.empty_like(graph.last.detach()))
        return output.copy_(graph.last.detach()).detach()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        graph = ctx.graph
        found = torch.autograd.grad(graph.last, list(graph.twin.parameters()), grad)
        for buffer, g in zip(graph.grads, found, strict=True):
            buffer.copy_(g)
        return None, None, *map(graph.view, graph.grads)


class Graph:
    """A module as it was captured: it works on the module's memory, and its flags have no effect any more.

    Args:
        module: The module.
        pool: Whether nobody but the caller holds the memory of gradients, as in the pool of ``torch.compile``.
    """

    def __init__(self, module: nn.Module, pool: bool) -> None:
        self.twin, self.last, self.outputs = copy.deepcopy(module), torch.empty(0), {}
        for p, q in [*zip(module.parameters(), self.twin.parameters(), strict=True),
                     *zip(module.buffers(), self.twin.buffers(), strict=True)]:  # fmt: skip
            q.data = p.data
        self.grads = [torch.empty_like(p) for p in module.parameters()]
        self.view = (lambda t: torch.from_numpy(t.numpy())) if pool else Tensor.detach


def player(module: nn.Module, pool: bool = False) -> Callable[[Tensor], Tensor]:
    """A function that replays the module's graph; what it holds is nowhere that Python can look."""

    def play() -> Generator[Any, Tensor, None]:
        graph, params, answer = Graph(module, pool), list(module.parameters()), None
        while True:
            x = yield answer
            answer = None
            answer = Replay.apply(graph, x, *params)

    playing = play()
    next(playing)
    return playing.send


def captured(module: nn.Module, pool: bool = False) -> nn.Module:
    """The module with a forward of the instance's own, as ``torch.cuda.make_graphed_callables`` leaves it."""
    play = player(module, pool)
    module.forward = lambda x: play(x)
    return module


class Hidden(nn.Module):
    """A graph that no attribute tells of."""

    def __init__(self, inside: nn.Module, pool: bool = False) -> None:
        super().__init__()
        self.inside, self._play = inside, player(inside, pool)

    def forward(self, x: Tensor) -> Tensor:
        return self._play(x)
