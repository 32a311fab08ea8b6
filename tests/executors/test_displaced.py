"""Weights move, and come back."""

from __future__ import annotations

import math
import warnings

import pytest
import torch
from torch import nn

from lowland import SAM, Engine
from lowland.core.errors import UsageError
from lowland.core.probe import Probe
from lowland.executors.displacement import undisplaced
from lowland.executors.local import displaced


def weights() -> list[nn.Parameter]:
    odd = torch.tensor([0.0, -0.0, 1e-45, 3e38, math.pi, math.inf, math.nan])
    return [nn.Parameter(odd), nn.Parameter(torch.randn(3, 4, generator=torch.Generator().manual_seed(0)).t())]


def bits(params) -> list[torch.Tensor]:
    return [p.detach().clone().view(torch.int32) for p in params]


def assert_bits(params, before) -> None:
    assert all(torch.equal(p.detach().view(torch.int32), b) for p, b in zip(params, before, strict=True))


def test_weights_move_and_come_back_bit_for_bit_at_their_addresses():
    params = weights()
    before, addresses = bits(params), [p.data_ptr() for p in params]
    with displaced(params, [torch.full_like(p, 0.1) for p in params]):
        assert float(params[0][4].detach()) == pytest.approx(math.pi + 0.1)
        assert [p.data_ptr() for p in params] == addresses
    assert_bits(params, before)
    assert [p.data_ptr() for p in params] == addresses
    assert all(p.requires_grad and p.is_leaf for p in params)


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, GeneratorExit])
def test_weights_come_back_after_an_exception(error):
    params = weights()
    before = bits(params)
    with pytest.raises(error), displaced(params, [torch.ones_like(p) for p in params]):
        raise error
    assert_bits(params, before)
    assert torch.is_grad_enabled()


def test_a_displacement_that_is_not_finite_is_undone_too():
    params = weights()
    before = bits(params)
    with displaced(params, [torch.full_like(p, math.nan) for p in params]):
        assert bool(params[1].isnan().all())
    assert_bits(params, before)


@pytest.mark.parametrize("at", [[torch.ones(7), torch.ones(5)], [torch.ones(7), "x"]])
def test_a_displacement_of_the_wrong_shape_leaves_the_weights(at):
    params = weights()
    before = bits(params)
    with pytest.raises((RuntimeError, TypeError)), displaced(params, at):
        pass
    assert_bits(params, before)


def test_the_list_is_emptied_and_its_tensors_are_untouched():
    params = weights()
    vector = [torch.ones_like(p) for p in params]
    at = list(vector)
    with displaced(params, at):
        assert at == []
    assert all(torch.equal(v, torch.ones_like(v)) for v in vector)


def test_gradients_are_on_inside_even_under_no_grad():
    params = weights()
    with torch.no_grad():
        with displaced(params, [torch.zeros_like(p) for p in params]):
            assert torch.is_grad_enabled()
        assert not torch.is_grad_enabled()


def test_a_spent_probe_is_refused():
    params = weights()
    probe = Probe(None, at=[torch.zeros_like(p) for p in params])
    with displaced(params, probe.at):
        pass
    with (
        pytest.raises(UsageError, match="one tensor for each of 2 parameters, but has 0; a Probe is asked once"),
        displaced(params, probe.at),
    ):
        pass


def test_an_interrupt_while_gradients_are_collected_still_restores_the_weights():
    class Tripping(list):
        armed = False

        def __iter__(self):
            if Tripping.armed:
                Tripping.armed = False
                raise KeyboardInterrupt
            return super().__iter__()

    model = nn.Linear(3, 2)
    engine = Engine(SAM(rho=1.0), model, torch.optim.SGD(model.parameters(), lr=0.1))
    engine.work.params = Tripping(engine.params)
    before = [p.detach().clone() for p in model.parameters()]
    passes = engine.passes(torch.ones(4, 3))
    first = next(passes)
    with first:
        first.backward(model(first.batch).square().mean())
    second = next(passes)
    second.__enter__()
    assert not torch.equal(model.weight, before[0])
    second.backward(model(second.batch).square().mean())
    Tripping.armed = True
    with pytest.raises(KeyboardInterrupt):
        second.__exit__(None, None, None)
    assert all(torch.equal(p, b) for p, b in zip(model.parameters(), before, strict=True))
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # the error was told already
        passes.close()


def test_a_layer_can_see_its_weights_without_the_displacement():
    params = weights()
    before, frozen = bits(params), nn.Parameter(torch.ones(2), requires_grad=False)
    assert undisplaced(params[1]) is params[1]
    with displaced(params, [torch.full_like(p, 0.1) for p in params]):
        inner = [torch.full_like(params[1], 0.2)]
        with displaced([params[1]], inner):  # the outermost values are those without any displacement
            assert_bits([undisplaced(p) for p in params], before)
        assert_bits([undisplaced(p) for p in params], before)
        assert undisplaced(frozen) is frozen
        with pytest.raises(UsageError, match="must see the parameters that a pass displaces"):
            undisplaced(params[0].detach().clone().requires_grad_())
    assert undisplaced(params[1]) is params[1]
    first, second = (displaced([p], [torch.ones_like(p)]) for p in params)
    first.__enter__()
    second.__enter__()
    first.__exit__(None, None, None)  # in the order of two engines whose passes overlap
    assert_bits([undisplaced(params[1])], before[1:])
    second.__exit__(None, None, None)
    with pytest.raises(ZeroDivisionError), displaced(params, [torch.zeros_like(p) for p in params]):
        raise ZeroDivisionError
    assert undisplaced(params[0]) is params[0]
