"""A strategy of Flower that goes on without failed clients, and without results that are not finite."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord
from flwr.serverapp import Grid, strategy

from lowland.core import checks
from lowland.core.errors import ArgumentError
from lowland.integrations.flower.arrays import differing, like, not_finite, size_of

LOG = logging.getLogger("flwr")  # Flower's own


@dataclass(frozen=True, kw_only=True)
class Round:
    """What became of one round of training.

    Args:
        number: The number of the round, from 1.
        asked: The clients that got the weights, by their node ids.
        averaged: The clients whose results were averaged.
        failed: The clients that gave no result, with the reason: killed, an exception, or no reply in time.
        refused: The clients whose result was not averaged, with the reason: NaN, infinity, or other arrays.
        examples: The sum of the weights of the average, by default of the clients' numbers of examples.
        bytes_down: Bytes of arrays sent to clients.
        bytes_up: Bytes of arrays that came back, also of refused results.
        changed: Whether the weights of the server changed. They do not if too few results are left.
    """

    number: int
    asked: tuple[int, ...]
    averaged: tuple[int, ...]
    failed: Mapping[int, str]
    refused: Mapping[int, str]
    examples: float
    bytes_down: int
    bytes_up: int
    changed: bool


class Guarded:
    """Makes a strategy of Flower go on without failed clients and unusable results; the first base class.

    ::

        class FedAdam(Guarded, strategy.FedAdam): ...

    A result is refused if an array or a metric has NaN or infinity, if its weight is not > 0, or if its arrays have
    other names, shapes or dtypes than those that were sent. Results are averaged in the order of node ids. Averages
    have the dtypes that were sent; those of integers are rounded.

    Args:
        *args: As the strategy's.
        min_results: The fewest usable results of a round, >= 1. With fewer the weights stay as they are.
        **kwargs: As the strategy's.

    Attributes:
        rounds: What became of each round of training.

    Raises:
        ArgumentError: ``min_results`` is not an integer >= 1.
    """

    weighted_by_key: str

    def __init__(self, *args: Any, min_results: int = 1, **kwargs: Any) -> None:
        checks.integer("min_results", min_results, 1, "an average needs one result")
        super().__init__(*args, **kwargs)
        self.min_results, self.rounds = min_results, list[Round]()
        self._sent: dict[int, ArrayRecord] = {}

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """As the strategy's; remembers what is sent to whom."""
        messages = list(super().configure_train(server_round, arrays, config, grid))  # type: ignore[misc]
        self._sent = {m.metadata.dst_node_id: next(iter(m.content.array_records.values())) for m in messages}
        return messages

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Average the usable results by the strategy's rule.

        Returns:
            The new arrays and the averaged metrics; None and None if there are fewer than ``min_results``.
        """
        given = {reply.metadata.src_node_id: reply for reply in replies}
        failed = {n: "no reply in time" for n in self._sent if n not in given}
        failed |= {n: str(reply.error.reason) for n, reply in given.items() if reply.has_error()}
        results = {n: given[n] for n in sorted(given) if n not in failed}
        refused = {n: reason for n, reply in results.items() if (reason := self._unusable(n, reply)) is not None}
        usable = {n: reply for n, reply in results.items() if n not in refused}
        arrays, metrics = self._aggregate(server_round, usable)
        self.rounds.append(
            Round(
                number=server_round,
                asked=tuple(sorted(self._sent)),
                averaged=tuple(usable) if arrays is not None else (),
                failed=failed,
                refused=refused,
                examples=sum(self._weight(reply) for reply in usable.values()) if arrays is not None else 0,
                bytes_down=size_of(self._sent.values()),
                bytes_up=size_of(record for r in results.values() for record in r.content.array_records.values()),
                changed=arrays is not None,
            )
        )
        self._say(self.rounds[-1])
        return arrays, metrics

    def _aggregate(
        self, server_round: int, usable: Mapping[int, Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        if len(usable) < self.min_results:
            return None, None
        arrays, metrics = super().aggregate_train(server_round, list(usable.values()))  # type: ignore[misc]
        if arrays is None or not_finite(arrays) is not None:
            return None, None
        return like(arrays, next(iter(self._sent.values()))), metrics

    def _unusable(self, node: int, reply: Message) -> str | None:
        """Why a result must not be averaged, in words; None if it may be."""
        records, metrics = list(reply.content.array_records.values()), list(reply.content.metric_records.values())
        if len(records) != 1 or len(metrics) != 1:
            return f"it has {len(records)} ArrayRecords and {len(metrics)} MetricRecords in place of one of each"
        if node not in self._sent:
            return "it was not asked for"
        difference = differing(self._sent[node], records[0])
        if difference is not None:
            return difference
        wrong = not_finite(records[0])
        if wrong is not None:
            return f"{wrong} is not finite"
        for name, value in metrics[0].items():
            if not all(math.isfinite(v) for v in (value if isinstance(value, list) else [value])):
                return f"the metric {name} is not finite"
        weight = metrics[0].get(self.weighted_by_key)
        if not isinstance(weight, int | float) or weight <= 0:
            return f"the metric {self.weighted_by_key} is {weight!r} in place of a number > 0"
        return None

    def _weight(self, reply: Message) -> float:
        (metrics,) = reply.content.metric_records.values()
        return metrics[self.weighted_by_key]  # type: ignore[no-any-return]

    def _say(self, found: Round) -> None:
        for what, reasons in (("failed", found.failed), ("refused", found.refused)):
            for node, reason in reasons.items():
                LOG.warning("round %d: the result of node %d %s: %s", found.number, node, what, reason)
        if not found.changed:
            LOG.warning("round %d: fewer than %d usable results, so the weights stay as they are", found.number,
                        self.min_results)  # fmt: skip


def guarded(kind: type) -> type:
    """A strategy of Flower that goes on without failed clients and unusable results: ``guarded(strategy.FedAdam)``.

    Args:
        kind: The class of the strategy.

    Raises:
        ArgumentError: ``kind`` is no class of a strategy.
    """
    if not (isinstance(kind, type) and issubclass(kind, strategy.Strategy)):
        raise ArgumentError(f"kind must be a class of flwr.serverapp.strategy, but is {kind!r}; pass FedAvg or FedAdam")
    return type(kind.__name__, (Guarded, kind), {"__doc__": kind.__doc__, "__module__": __name__})


class FedAvg(Guarded, strategy.FedAvg):  # type: ignore[misc]
    """Flower's FedAvg, which averages weights and buffers by examples, without failed clients and unusable results.

    Args:
        *args: As ``flwr.serverapp.strategy.FedAvg``.
        min_results: The fewest usable results of a round, >= 1. With fewer the weights stay as they are.
        **kwargs: As ``flwr.serverapp.strategy.FedAvg``.

    Reference: McMahan, Moore, Ramage, Hampson, Agüera y Arcas: Communication-Efficient Learning of Deep Networks from
    Decentralized Data. AISTATS 2017, arXiv 1602.05629.
    """
