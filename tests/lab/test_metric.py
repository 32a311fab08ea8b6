from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.distributed as dist
from ranks import on_ranks
from torch import Tensor, nn

from lowland.core.errors import ArgumentError
from lowland.lab.metric import LOSS, Metric


def hits(prediction: Tensor, batch: Any) -> Tensor:
    return torch.stack([(prediction == batch[1]).sum(), torch.tensor(len(prediction))])


class Largest:
    """Of the kind of torchmetrics' classes; it remembers where it was moved."""

    def __init__(self) -> None:
        self.seen: list[float] = []
        self.devices: list[torch.device] = []

    def to(self, device: torch.device) -> Largest:
        self.devices.append(device)
        return self

    def update(self, prediction: Tensor, target: Tensor) -> None:
        self.seen.append(float((prediction - target).abs().max()))

    def compute(self) -> Tensor:
        return torch.tensor(max(self.seen))


class Seen(nn.Module):
    """The number of predictions; as torchmetrics, it adds up the ranks where it finds any."""

    def __init__(self) -> None:
        super().__init__()
        self.distributed_available_fn = lambda: dist.is_available() and dist.is_initialized()
        self.register_buffer("seen", torch.zeros(()))

    def update(self, prediction: Tensor, target: Tensor) -> None:
        self.seen += len(prediction)

    def compute(self) -> Tensor:
        if self.distributed_available_fn():
            dist.all_reduce(self.seen)
        return self.seen


class Inside(nn.Module):
    """Such a metric inside another one, as in a wrapper or a composition."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = Seen()

    def update(self, prediction: Tensor, target: Tensor) -> None:
        self.inner.update(prediction, target)

    def compute(self) -> Tensor:
        return 2 * self.inner.compute()


PAIRS = [
    (torch.tensor([1, 2, 3]), (None, torch.tensor([1, 2, 4]))),
    (torch.tensor([5]), (None, torch.tensor([7]))),
]


def test_totals_add_up_over_batches_of_different_sizes() -> None:
    metric = Metric(name="accuracy", update=hits)
    assert metric.over(PAIRS) == 0.5  # the mean of the batches' own values is 1/3
    together = (torch.cat([p for p, _ in PAIRS]), (None, torch.cat([b[1] for _, b in PAIRS])))
    assert metric.over([together]) == 0.5


def test_totals_are_added_in_double_precision() -> None:
    metric = Metric(name="mean", update=lambda p, b: torch.stack([p, torch.tensor(1.0)]))
    small = [(torch.tensor(2.0**24), None), *[(torch.tensor(1.0), None)] * 8]
    assert metric.over(small) == (2**24 + 8) / 9  # in single precision the ones are lost


def test_compute_sees_the_sum_of_the_totals() -> None:
    metric = Metric(name="perplexity", update=hits, compute=lambda totals: float(2 ** (totals[0] / totals[1])))
    assert metric.over(PAIRS) == pytest.approx(2**0.5)


def test_a_count_starts_fresh() -> None:
    metric = Metric(name="accuracy", update=hits)
    metric.over(PAIRS)
    assert metric.over(PAIRS[1:]) == 0
    assert metric.over([]) != metric.over([])  # not a number


def test_an_object_like_those_of_torchmetrics() -> None:
    metric = Metric(name="largest", torchmetrics=Largest)
    assert metric.over(PAIRS) == 2
    assert metric.over(PAIRS[:1]) == 1  # a fresh object
    doubled = Metric(name="largest", torchmetrics=Largest, target=lambda batch: 2 * batch[1])
    assert doubled.over(PAIRS) == 9


def on_every_rank(kind: str) -> float:
    return Metric(name="seen", torchmetrics={"seen": Seen, "inside": Inside}[kind]).over(PAIRS)


@pytest.mark.parametrize(("kind", "value"), [("seen", 4), ("inside", 8)])
def test_ranks_do_not_add_up(kind: str, value: float) -> None:
    """Every rank evaluates all examples."""
    assert on_every_rank(kind) == value
    assert on_ranks(2, on_every_rank, kind) == [value, value]


def test_such_an_object_is_moved_to_the_predictions() -> None:
    made: list[Largest] = []

    def make() -> Largest:
        made.append(Largest())
        return made[-1]

    Metric(name="largest", torchmetrics=make).over(PAIRS)
    assert made[-1].devices == [torch.device("cpu")]  # once, before the first batch


@pytest.mark.parametrize(("fields", "rule"), [
    ({"name": "top 1", "update": hits}, "name must be a word for the run file, and not loss, but is 'top 1'"),
    ({"name": "loss", "update": hits}, "and not loss, but is 'loss'; take one such as accuracy"),
    ({"name": "none"}, "none must have either update or torchmetrics, but has neither"),
    ({"name": "two", "update": hits, "torchmetrics": Largest}, "two must have either .* but has both"),
])  # fmt: skip
def test_refused(fields: dict[str, Any], rule: str) -> None:
    with pytest.raises(ArgumentError, match=rule):
        Metric(**fields)


def test_totals_of_another_shape_are_refused() -> None:
    metric = Metric(name="mean", update=lambda p, b: p.float().mean())
    with pytest.raises(
        ArgumentError, match=r"update of mean must return totals of shape \(k,\), but returned shape \(\)"
    ):
        metric.over(PAIRS)


def test_what_a_run_file_says() -> None:
    described = Metric(name="accuracy", update=hits, unit="%", scale=100).described()
    assert described == {"name": "accuracy", "unit": "%", "scale": 100, "higher": True}
    assert LOSS.keys() == described.keys()
    assert LOSS["higher"] is False
