"""Averages by hand, and rounds that go on without failed clients and results that cannot be used."""

from __future__ import annotations

import logging
from typing import Any

import numpy as np
import pytest
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, Error, Message, MetricRecord, RecordDict
from flwr.serverapp import strategy

from flower.federation import EXAMPLES, app, context, first_arrays, message, net, same
from lowland.core.errors import ArgumentError
from lowland.integrations.flower import FedAvg, Guarded, arrays_of, guarded

METRICS = {"num-examples": 1, "loss": 0.5}


class Grid:
    """Three nodes, for strategies that ask who is there."""

    def get_node_ids(self) -> list[int]:
        return [1, 2, 3]


def begun(made: Any = None) -> Any:
    """A strategy that has sent the first arrays to three clients."""
    found = FedAvg(fraction_evaluate=0.0) if made is None else made
    assert len(found.configure_train(1, first_arrays(), ConfigRecord(), Grid())) == 3
    return found


def trained(client: int) -> Message:
    return app()(message(first_arrays(), 1, client), context(client))


def reply(client: int, arrays: ArrayRecord, metrics: dict[str, Any] | None = None) -> Message:
    content = RecordDict({"arrays": arrays, "metrics": MetricRecord({**METRICS, **(metrics or {})})})
    return Message(content, reply_to=message(first_arrays(), 1, client))


def test_a_round_is_the_average_by_examples() -> None:
    results = [trained(client) for client in (0, 1)]
    found, metrics = begun().aggregate_train(1, results)
    weights = np.array(EXAMPLES[:2]) / sum(EXAMPLES[:2])
    for name, array in found.items():
        by_hand = sum(w * r.content["arrays"][name].numpy() for w, r in zip(weights, results, strict=True))
        if name.endswith("num_batches_tracked"):
            assert array.numpy() == 4  # both clients made four steps
            assert array.dtype == "int64"
        else:
            assert array.dtype == "float64"
            np.testing.assert_allclose(array.numpy(), by_hand, rtol=0, atol=1e-15)
    losses = [r.content["metrics"]["loss"] for r in results]
    assert metrics["loss"] == pytest.approx(float(weights @ losses), rel=1e-14)


def test_counts_of_batches_are_rounded() -> None:
    results = []
    for client, count in ((0, 3), (1, 5)):
        model = net()
        model.layers[1].num_batches_tracked.fill_(count)
        results.append(reply(client, arrays_of(model), {"num-examples": EXAMPLES[client]}))
    found, _ = begun().aggregate_train(1, results)
    assert int(found["layers.1.num_batches_tracked"].numpy()) == 4  # 3 * 24/34 + 5 * 10/34 = 3.6


def test_the_order_of_replies_does_not_matter() -> None:
    results = [trained(client) for client in range(3)]
    one, _ = begun().aggregate_train(1, results)
    other, _ = begun().aggregate_train(1, results[::-1])
    assert same(one, other)


def spoiled(value: float) -> ArrayRecord:
    model = net()
    with torch.no_grad():
        model.layers[4].weight[1, 2] = value
    return arrays_of(model)


def without_bias() -> ArrayRecord:
    arrays = arrays_of(net())
    del arrays["layers.0.bias"]
    return arrays


def of_another_shape() -> ArrayRecord:
    arrays = arrays_of(net())
    arrays["layers.0.bias"] = Array(np.zeros(9))
    return arrays


UNUSABLE: dict[str, tuple[Any, dict[str, Any], str]] = {
    "NaN": (lambda: spoiled(float("nan")), {}, "layers.4.weight is not finite"),
    "infinity": (lambda: spoiled(float("-inf")), {}, "layers.4.weight is not finite"),
    "a loss of NaN": (first_arrays, {"loss": float("nan")}, "the metric loss is not finite"),
    "metrics of NaN": (first_arrays, {"each": [1.0, float("nan")]}, "the metric each is not finite"),
    "no examples": (first_arrays, {"num-examples": 0}, "the metric num-examples is 0 in place of a number > 0"),
    "a missing array": (without_bias, {}, "layers.0.bias is missing"),
    "another shape": (of_another_shape, {}, "layers.0.bias is float64[9] in place of float64[8]"),
}


@pytest.mark.parametrize("name", UNUSABLE)
def test_results_that_cannot_be_used_are_left_out_and_said(name: str, caplog: pytest.LogCaptureFixture) -> None:
    arrays, metrics, reason = UNUSABLE[name]
    good = [trained(client) for client in (0, 2)]
    guard = begun()
    with caplog.at_level(logging.WARNING, "flwr"):
        found, _ = guard.aggregate_train(1, [good[0], reply(1, arrays(), metrics), good[1]])
    expected, _ = begun().aggregate_train(1, good)
    assert same(found, expected)
    (told,) = guard.rounds
    assert told.refused == {2: reason}
    assert (told.asked, told.averaged, told.failed, told.changed) == ((1, 2, 3), (1, 3), {}, True)
    assert told.examples == EXAMPLES[0] + EXAMPLES[2]
    assert f"round 1: the result of node 2 refused: {reason}" in caplog.text


def test_a_result_without_metrics_is_left_out() -> None:
    bare = Message(RecordDict({"arrays": first_arrays()}), reply_to=message(first_arrays(), 1, 1))
    guard = begun()
    guard.aggregate_train(1, [trained(0), bare])
    assert "0 MetricRecords" in guard.rounds[0].refused[2]


def test_a_result_that_was_not_asked_for_is_left_out() -> None:
    guard = begun()
    del guard._sent[2]
    found, _ = guard.aggregate_train(1, [trained(0), trained(1)])
    assert guard.rounds[0].refused == {2: "it was not asked for"}
    assert same(found, begun().aggregate_train(1, [trained(0)])[0])


def test_failed_clients_are_left_out_and_said(caplog: pytest.LogCaptureFixture) -> None:
    failed = Message(Error(8, "it died"), reply_to=message(first_arrays(), 1, 1))
    guard = begun()
    with caplog.at_level(logging.WARNING, "flwr"):
        found, _ = guard.aggregate_train(1, [failed, trained(0)])  # and the third client does not reply
    assert same(found, begun().aggregate_train(1, [trained(0)])[0])
    (told,) = guard.rounds
    assert told.failed == {2: "it died", 3: "no reply in time"}
    assert told.averaged == (1,)
    assert "node 2 failed: it died" in caplog.text
    assert "node 3 failed: no reply in time" in caplog.text


def test_too_few_results_leave_the_weights(caplog: pytest.LogCaptureFixture) -> None:
    guard = begun(FedAvg(fraction_evaluate=0.0, min_results=2))
    with caplog.at_level(logging.WARNING, "flwr"):
        assert guard.aggregate_train(1, [trained(0), reply(1, spoiled(float("nan")))]) == (None, None)
    (told,) = guard.rounds
    assert (told.averaged, told.changed, told.examples) == ((), False, 0)
    assert "fewer than 2 usable results, so the weights stay" in caplog.text
    with pytest.raises(ArgumentError, match="min_results must be an integer >= 1, but is 0"):
        FedAvg(min_results=0)


def test_bytes_are_those_of_the_arrays_in_both_directions() -> None:
    guard = begun()
    guard.aggregate_train(1, [trained(0), reply(1, spoiled(float("nan")))])
    one = first_arrays().count_bytes()
    assert (guard.rounds[0].bytes_down, guard.rounds[0].bytes_up) == (3 * one, 2 * one)


def test_other_strategies_can_be_guarded() -> None:
    kind = guarded(strategy.FedMedian)
    assert issubclass(kind, Guarded)
    guard = begun(kind(fraction_evaluate=0.0, min_results=1))
    found, _ = guard.aggregate_train(1, [trained(0), trained(2), reply(1, spoiled(float("nan")))])
    values = [r.content["arrays"]["layers.0.weight"].numpy() for r in (trained(0), trained(2))]
    np.testing.assert_allclose(found["layers.0.weight"].numpy(), np.median(values, axis=0), atol=1e-15)
    with pytest.raises(ArgumentError, match=r"kind must be a class of flwr\.serverapp"):
        guarded(int)


def test_averages_that_are_not_finite_leave_the_weights() -> None:
    class Broken(strategy.FedAvg):  # type: ignore[misc]
        def aggregate_train(self, server_round: int, replies: Any) -> Any:
            return spoiled(float("inf")), MetricRecord(METRICS)

    guard = begun(guarded(Broken)(fraction_evaluate=0.0))
    assert guard.aggregate_train(1, [trained(0)]) == (None, None)
    assert not guard.rounds[0].changed
