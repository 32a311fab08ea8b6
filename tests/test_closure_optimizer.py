"""What torch and its checkpoints see in a ClosureOptimizer."""

from __future__ import annotations

import copy

import pytest
import torch
from closures import BASES, Setup, assert_equal
from torch import nn
from torch.distributed.checkpoint.state_dict import get_optimizer_state_dict, set_optimizer_state_dict

from lowland.errors import ParameterError


def test_groups_and_state_are_the_base_optimizer_s_own():
    setup = Setup()
    assert isinstance(setup.optimizer, torch.optim.Optimizer)
    assert setup.optimizer.param_groups is setup.base.param_groups
    assert len(setup.base.param_groups) == 1
    setup.optimizer.step(setup.closure(0))
    assert setup.optimizer.state is setup.base.state
    assert len(setup.base.state) == 6
    assert "SGD" in repr(setup.base)
    assert "lr: 0.1" in repr(setup.optimizer)


def test_state_dicts_are_the_base_optimizer_s_and_survive_loading():
    setup, twin = Setup(base=BASES["adamw"]), Setup(base=BASES["adamw"])
    for step in range(3):
        setup.optimizer.step(setup.closure(step))
    twin.model.load_state_dict(setup.model.state_dict())
    twin.optimizer.load_state_dict(state_dict=copy.deepcopy(setup.optimizer.state_dict()))  # torch shares tensors
    twin.engine.load_state_dict(setup.engine.state_dict())
    for s in (setup, twin):
        s.optimizer.step(s.closure(3))
    assert_equal(setup.weights(), twin.weights())
    assert twin.optimizer.param_groups is twin.base.param_groups


def test_a_new_group_reaches_the_base_and_stops_the_engine():
    setup, more = Setup(), nn.Parameter(torch.ones(1))
    setup.optimizer.add_param_group({"params": [more], "lr": 0.5})
    assert setup.base.param_groups[1]["params"] == [more]
    with pytest.raises(ParameterError, match="make a new Engine"):
        setup.optimizer.step(setup.closure(0))


@pytest.mark.parametrize("base", BASES.values(), ids=BASES)
def test_distributed_checkpoints_save_and_load_it(base):
    setup, fresh = Setup(base=base), Setup(base=base)
    for step in range(3):
        setup.optimizer.step(setup.closure(step))
    saved = copy.deepcopy(get_optimizer_state_dict(setup.model, setup.optimizer))  # torch shares tensors
    before = fresh.weights()
    set_optimizer_state_dict(fresh.model, fresh.optimizer, saved)  # fills an empty state by a step of its own
    assert_equal(fresh.weights(), before)
    assert fresh.engine.step == 0
    fresh.model.load_state_dict(setup.model.state_dict())
    for s in (setup, fresh):
        s.optimizer.zero_grad()
        s.optimizer.step(s.closure(3))
    assert_equal(setup.weights(), fresh.weights())


def test_distributed_checkpoints_read_a_fresh_one():
    setup = Setup(base=BASES["adamw"])
    before = setup.weights()
    saved = get_optimizer_state_dict(setup.model, setup.optimizer)
    assert set(saved["state"]) == set(dict(setup.model.named_parameters()))
    assert_equal(setup.weights(), before)
