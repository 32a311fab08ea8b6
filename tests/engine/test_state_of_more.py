"""An engine with more parameters takes over memory and step by name."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from problems import batch, loss_fn, net, sgd, train

from lowland import SAM, SLSAM, VSAM, Engine, FriendlySAM, LookSAM
from lowland.core.errors import StateError


def engine_of(method, *, more: bool = False):
    model = net()
    if not more:
        model.second.requires_grad_(False)
    return Engine(method, model, sgd(model), loss_fn)


@pytest.mark.parametrize(
    ("method", "key"), [(LookSAM(k=3), "g_v"), (FriendlySAM(), "mean"), (VSAM(window=4), "psf")], ids=["l", "f", "v"]
)
def test_memory_and_step_are_taken_over_by_name(method, key):
    old, new = engine_of(method), engine_of(method, more=True)
    train(old, 5)
    state = old.state_dict()
    with pytest.raises(StateError, match=r"second\.weight has shape none there .* with more parameters: strict=False"):
        new.load_state_dict(state)
    train(new, 2)  # what is loaded replaces all of it
    new.load_state_dict(state, strict=False)
    assert new.step == 5
    assert new.rng.getstate() == old.rng.getstate()
    known = dict(zip(old.names, old.memory[key], strict=True))
    for name, found in zip(new.names, new.memory[key], strict=True):
        assert torch.equal(found, known[name] if name in known else torch.zeros_like(found))
    assert {k: v for k, v in new.memory.items() if k != key} == {k: v for k, v in old.memory.items() if k != key}
    new.backward(batch(7))


def test_equal_parameters_load_the_same_either_way():
    old, new = engine_of(LookSAM()), engine_of(LookSAM())
    train(old, 3)
    new.load_state_dict(old.state_dict(), strict=False)
    assert all(torch.equal(a, b) for a, b in zip(old.memory["g_v"], new.memory["g_v"], strict=True))


def test_fewer_parameters_other_shapes_and_other_methods_are_refused():
    small, large = engine_of(LookSAM()), engine_of(LookSAM(), more=True)
    with pytest.raises(StateError, match=r"second\.weight has shape .* and none here; load it"):
        small.load_state_dict(large.state_dict(), strict=False)
    state = small.state_dict()
    state["parameters"] = {**state["parameters"], "first.weight": [2, 2]}
    with pytest.raises(StateError, match=r"first\.weight has shape \[2, 2\] there"):
        large.load_state_dict(state, strict=False)
    with pytest.raises(StateError, match="same method"):
        engine_of(SAM(), more=True).load_state_dict(small.state_dict(), strict=False)
    assert large.step == 0


def test_what_keeps_a_number_per_parameter_is_refused():
    old, new = engine_of(SLSAM()), engine_of(SLSAM(), more=True)
    train(old, 2)
    with pytest.raises(StateError, match="keeps an entry per parameter in p, drawn, lagged values norms; load it"):
        new.load_state_dict(old.state_dict(), strict=False)
    assert new.step == 0


@dataclass(frozen=True)
class Late(SAM):
    """A method of one's own whose memory becomes a vector at step 3, where no plan is watched."""

    def init(self, params):
        return {"last": None}

    def plan(self, engine, batch):
        loss, grad = yield from super().plan(engine, batch)
        if engine.step == 3:
            engine.memory["last"] = [g.clone() for g in grad]
        return loss, grad


def test_what_has_become_a_vector_since_is_refused():
    old, new = engine_of(Late()), engine_of(Late(), more=True)
    new.load_state_dict(old.state_dict(), strict=False)  # there is nothing yet
    train(old, 4)
    with pytest.raises(StateError, match="Late keeps an entry per parameter in last; load it"):
        new.load_state_dict(old.state_dict(), strict=False)
    assert new.step == 0
