"""A client on two ranks: SAMPa's two gradients are divided over them, and nothing else changes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
import torch.distributed as dist
from ranks import on_ranks
from torch.distributed.device_mesh import init_device_mesh

from flower.federation import STEPS, Net, app, context, first_arrays, loss_fn, make, message, net, same
from lowland.core.errors import UsageError
from lowland.integrations.flower import Local, arrays_of, client_app, dismiss, follow, leading

ROUNDS = 3
PASSES: list[int] = []  # of this rank


def still(place: Any, config: Mapping[str, Any]) -> Local:
    """Without dropout, whose mask a rank draws for its own probe."""
    local = make(place, config)
    local.model.layers[3].p = 0.0
    return local


def meshed(place: Any, config: Mapping[str, Any]) -> Local:
    local = still(place, config)

    def counting(model: Any, batch: Any) -> Any:
        PASSES.append(1)
        return loss_fn(model, batch)

    local.loss_fn = counting
    local.options = {"mesh": init_device_mesh("cpu", (2,), mesh_dim_names=("probe",))}
    return local


def weights(number: int) -> Any:
    """The server's weights of a round."""
    model: Net = net(number)
    return arrays_of(model)


def on_two(memory: str, forgetful: bool = False) -> Any:
    """The arrays of rank 0 after each round, and its error; the number of passes on each rank."""
    made = client_app(meshed)
    PASSES.clear()
    if dist.get_rank() > 0:
        follow(made)
        return len(PASSES)
    place, replies, error = context(0, memory=memory), [], ""
    try:
        for number in range(1, ROUNDS + 1):
            replies.append(leading(made)(message(weights(number), number), place).content["arrays"])
            if forgetful:
                place.state.clear()
    except UsageError as raised:
        error = str(raised)
    dismiss()
    return replies, error, len(PASSES)


@pytest.mark.parametrize("memory", ["anew", "kept"])
def test_two_ranks_train_as_one(memory: str) -> None:
    (replies, error, here), there = on_ranks(2, on_two, memory)
    assert error == ""
    assert here == there == ROUNDS * STEPS  # one of two gradients a step on each rank
    place = context(0, memory=memory)
    for number, arrays in enumerate(replies, 1):
        expected = client_app(still)(message(weights(number), number), place).content["arrays"]
        assert same(arrays, expected)


def test_ranks_that_kept_different_things_are_refused() -> None:
    (replies, error, _), _ = on_ranks(2, on_two, "kept", True)
    assert len(replies) == 1
    assert "all ranks of a client must have a kept state or none, but [False, True] have one" in error


def test_both_need_a_process_group() -> None:
    with pytest.raises(UsageError, match=r"leading must be called on rank 0 .* is in none; start"):
        leading(app())
    with pytest.raises(UsageError, match="follow must be called on another rank than 0"):
        follow(app())


def test_one_rank_suffices_for_an_evaluation() -> None:
    found = on_ranks(2, evaluated)
    assert found[0] == {"num-examples": 3}


def evaluated() -> Any:
    def measured(place: Any, config: Mapping[str, Any]) -> Local:
        local = still(place, config)
        local.evaluate = lambda model: {"num-examples": 3}
        return local

    if dist.get_rank() > 0:
        return None
    return dict(
        leading(client_app(measured))(message(first_arrays(), 1, kind="evaluate"), context(0)).content["metrics"]
    )
