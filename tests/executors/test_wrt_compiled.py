"""`Probe.wrt` on compiled models, which are told through backward(inputs=…): each frozen set would be compiled anew."""

from __future__ import annotations

import pytest
import torch
from problems import batch, loss_fn, net

from lowland.core.probe import Probe
from lowland.executors.base import Work
from lowland.executors.local import Local


def work_on(model) -> Work:
    params = [p for p in model.parameters() if p.requires_grad]
    return Work(model, params, loss_fn=loss_fn, scaler=None, micro_batch=None, rng="free")


def ask(work, wrt=None):
    work.begin()
    (reading,) = Local().run(work, (Probe(batch(), wrt=wrt),))
    assert all(p.requires_grad and p.grad is None for p in work.params)
    return reading


def choices(count):
    """Each parameter alone, all but each, none, all."""
    alone = [[i == j for j in range(count)] for i in range(count)]
    return [*alone, *[[not c for c in choice] for choice in alone], [False] * count, [True] * count]


class Compiler:
    """A backend that counts its graphs; the backward pass is compiled, too."""

    def __init__(self):
        self.graphs = 0

    def __call__(self, graph, inputs):
        from torch._dynamo.backends.debugging import aot_eager

        self.graphs += 1
        return aot_eager(graph, inputs)


@pytest.mark.slow
@pytest.mark.parametrize("partly", [False, True])
def test_a_compiled_model_is_not_compiled_anew_for_each_choice(partly):
    torch._dynamo.reset()
    plain, inner, compiler = work_on(net(odd=True)), net(odd=True), Compiler()
    if partly:
        inner.first = torch.compile(inner.first, backend=compiler)
    work = work_on(inner if partly else torch.compile(inner, backend=compiler))
    full = ask(work)
    reached, graphs = list(work.step.reached), compiler.graphs
    assert graphs >= 1
    for choice in choices(len(work.params)):
        reading = ask(work, choice)
        for g, expected, chosen in zip(reading.grad, full.grad, choice, strict=True):
            # the same compiled backward, so the same numbers
            torch.testing.assert_close(g, expected if chosen else torch.zeros_like(g), rtol=1e-12, atol=1e-15)
        assert work.step.reached == [c and r for c, r in zip(choice, reached, strict=True)]
        eager = ask(plain, choice)
        for g, expected in zip(reading.grad, eager.grad, strict=True):
            torch.testing.assert_close(g, expected, rtol=1e-10, atol=1e-13)
        assert plain.step.reached == work.step.reached
    assert compiler.graphs == graphs


def test_a_model_compiled_in_place_is_not_compiled_anew_either():
    torch._dynamo.reset()
    model, compiler = net(), Compiler()
    model.compile(backend=compiler)
    work = work_on(model)
    full, graphs = ask(work), compiler.graphs
    for choice in choices(len(work.params)):
        reading = ask(work, choice)
        for g, expected, chosen in zip(reading.grad, full.grad, choice, strict=True):
            torch.testing.assert_close(g, expected if chosen else torch.zeros_like(g), rtol=1e-12, atol=1e-15)
    assert compiler.graphs == graphs >= 1
