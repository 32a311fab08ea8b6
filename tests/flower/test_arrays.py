"""Models as Flower's arrays: what goes there and back, and what is refused."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from flwr.app import Array, ArrayRecord
from torch import nn

from flower.federation import net, same
from lowland.core.errors import ArgumentError
from lowland.integrations.flower import arrays_of, load_arrays
from lowland.integrations.flower.arrays import like, not_finite, size_of


def test_parameters_and_buffers_go_there_and_back() -> None:
    one, other = net(0), net(1)
    one.layers[1](torch.randn(4, 8, dtype=torch.float64))
    load_arrays(other, arrays_of(one))
    for name, value in one.state_dict().items():
        assert torch.equal(other.state_dict()[name], value)
    assert int(other.layers[1].num_batches_tracked) == 1
    assert same(arrays_of(one), arrays_of(other))


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (lambda r: r.pop("layers.0.bias"), "layers.0.bias is missing"),
        (lambda r: r.update({"head": Array(np.zeros(1))}), "head is unknown"),
        (lambda r: r.update({"layers.0.bias": Array(np.zeros(9))}), r"layers.0.bias is float64\[9\] in place of"),
        (lambda r: r.update({"layers.0.bias": Array(np.zeros(8, np.float32))}), r"is float32\[8\] in place of float64"),
    ],
)
def test_arrays_of_another_model_are_refused(change: Any, text: str) -> None:
    arrays = arrays_of(net())
    change(arrays)
    with pytest.raises(ArgumentError, match=text):
        load_arrays(net(), arrays)


def test_what_no_server_can_average_is_refused() -> None:
    with pytest.raises(ArgumentError, match=r"weight must have a dtype .* but is torch\.bfloat16"):
        arrays_of(nn.Linear(2, 2).bfloat16())

    class Extra(nn.Linear):
        def get_extra_state(self) -> Any:
            return {"a": 1}

    with pytest.raises(ArgumentError, match="_extra_state is a dict"):
        arrays_of(Extra(2, 2))


def test_averages_get_the_dtypes_that_were_sent() -> None:
    sent = ArrayRecord({"n": Array(np.array(3)), "w": Array(np.zeros(2, np.float16)), "b": Array(np.array([True]))})
    averaged = ArrayRecord({"n": Array(np.array(3.6)), "w": Array(np.ones(2)), "b": Array(np.array([0.4]))})
    found = {name: array.numpy() for name, array in like(averaged, sent).items()}
    assert (found["n"].dtype, int(found["n"])) == (np.int64, 4)
    assert found["w"].dtype == np.float16
    assert (found["b"].dtype, bool(found["b"][0])) == (np.bool_, False)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_values_that_are_not_finite_are_found(value: float) -> None:
    model = net()
    assert not_finite(arrays_of(model)) is None
    with torch.no_grad():
        model.layers[4].bias[1] = value
    assert not_finite(arrays_of(model)) == "layers.4.bias"


def test_sizes_are_those_of_the_serialized_arrays() -> None:
    record = arrays_of(net())
    assert size_of([record, record]) == 2 * sum(len(a.data) + len(name) for name, a in record.items())
    assert size_of([record]) > 8 * sum(p.numel() for p in net().parameters())
