"""State of every kind that passes change in a module: once per step."""

from __future__ import annotations

from collections import UserDict, deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from hand import sgd, square
from torch import Tensor, nn

import lowland

METHODS = [lowland.SAM(rho=0.5), lowland.SAMPa(), lowland.GSAM(), lowland.KSAM(k=2), lowland.MicroSAM(m=1)]
each = pytest.mark.parametrize("method", METHODS, ids=lambda m: m.kind)
TOTAL = torch.zeros(())
SHARED: dict[str, Any] = {}


class Bank:
    """A queue whose pointer is a whole number, in an object that is no module."""

    def __init__(self) -> None:
        self.rows, self.pointer = torch.zeros(64, 3), 0

    def put(self, x: Tensor) -> None:
        self.rows[self.pointer] = x[0].detach()
        self.pointer += 1

    def count(self) -> float:
        assert int((self.rows.abs().sum(1) > 0).sum()) == self.pointer
        return self.pointer


class Pair(NamedTuple):
    mean: Tensor
    more: Tensor


@dataclass
class Moments:
    mean: Tensor
    count: int = 0


class Mean:
    """A running mean, whose sum is a real number and whose count a whole one."""

    total, count = 0.0, 0

    def update(self, value: float) -> None:
        self.total, self.count = self.total + value, self.count + 1


class Holder(nn.Module):
    """Counts its forward passes in one of many ways."""

    shared = torch.zeros(())

    def __init__(self, way: str) -> None:
        super().__init__()
        self.inner, self.way, self.bank, self.mean = nn.Linear(3, 2), way, Bank(), Mean()
        self.queue: deque[Any] = deque(maxlen=50)
        self.list: list[Any] = []
        self.set: set[Any] = set()
        self.array, self.tuple, self.pair = np.zeros(2), (torch.zeros(()), 1), Pair(torch.zeros(()), torch.ones(()))
        self.moments, self.numbers, self.user = Moments(torch.zeros(())), {"n": 0.0}, UserDict(n=torch.zeros(()))
        self.text = ""
        type(self).shared = torch.zeros(())

    def forward(self, x: Tensor) -> Tensor:
        getattr(self, f"count_{self.way}")(x)
        return self.inner(x)

    def count_queue_of_tuples(self, x: Tensor) -> None:
        self.queue.append((x[0], 1))

    def count_list_of_dicts(self, x: Tensor) -> None:
        self.list.append({"x": x})

    def count_set(self, x: Tensor) -> None:
        self.set.add(torch.zeros(2))

    def count_array(self, x: Tensor) -> None:
        self.array += 1

    def count_array_anew(self, x: Tensor) -> None:
        self.array = self.array + 1

    def count_bank(self, x: Tensor) -> None:
        self.bank.put(x)

    def count_mean(self, x: Tensor) -> None:
        self.mean.update(1.0)

    def count_tuple(self, x: Tensor) -> None:
        self.tuple = (self.tuple[0] + 1, 2)

    def count_pair(self, x: Tensor) -> None:
        self.pair = Pair(self.pair.mean + 1, self.pair.more)

    def count_moments(self, x: Tensor) -> None:
        self.moments.mean, self.moments.count = self.moments.mean + 1, self.moments.count + 1

    def count_numbers(self, x: Tensor) -> None:
        self.numbers["n"] += 1

    def count_user(self, x: Tensor) -> None:
        self.user["n"] = self.user["n"] + 1

    def count_text(self, x: Tensor) -> None:
        self.text += "a"

    def count_class(self, x: Tensor) -> None:
        self.shared.add_(1)

    def count_class_anew(self, x: Tensor) -> None:
        Holder.shared = Holder.shared + 1

    def count_global(self, x: Tensor) -> None:
        global TOTAL
        TOTAL = TOTAL + 1

    def count_global_dict(self, x: Tensor) -> None:
        SHARED["n"] = SHARED["n"] + 1


READ: dict[str, Callable[[Holder], Any]] = {
    "queue_of_tuples": lambda m: len(m.queue),
    "list_of_dicts": lambda m: len(m.list),
    "set": lambda m: len(m.set),
    "array": lambda m: m.array[0],
    "array_anew": lambda m: m.array[1],
    "bank": lambda m: m.bank.count(),
    "mean": lambda m: m.mean.count if m.mean.total == m.mean.count else -1,
    "tuple": lambda m: m.tuple[0],
    "pair": lambda m: m.pair.mean,
    "moments": lambda m: m.moments.count if float(m.moments.mean) == m.moments.count else -1,
    "numbers": lambda m: m.numbers["n"],
    "user": lambda m: m.user["n"],
    "text": lambda m: len(m.text),
    "class": lambda m: m.shared,
    "class_anew": lambda m: Holder.shared,
    "global": lambda m: TOTAL,
    "global_dict": lambda m: SHARED["n"],
}


@each
@pytest.mark.parametrize("way", READ)
def test_a_module_s_state_changes_once_per_step(method: Any, way: str) -> None:
    global TOTAL
    TOTAL, SHARED["n"] = torch.zeros(()), torch.zeros(())
    net, x = Holder(way), torch.randn(4, 3)
    engine = lowland.Engine(method, net, sgd(net), square)
    for _ in range(5):
        engine.backward(x)
    assert float(READ[way](net)) == 5
