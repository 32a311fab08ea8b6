"""Counts what a method launches beyond its passes: operator calls and bytes, the same on every machine.

On a GPU every kernel costs some microseconds of the host, whatever it computes. So the arithmetic of a method on many
small tensors costs its number of launches. The methods take the branches that they take on a GPU; no GPU is needed.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.optim import SGD, Adam, AdamW, Optimizer

import lowland
from lowland.bench.overhead import ManySmall
from lowland.core.at_hand import elsewhere
from lowland.core.criterion import Criterion
from lowland.core.errors import UnknownNameError
from lowland.lab.models import build
from lowland.methods import METHODS, make
from lowland.planner.launches import Launches, uncounted

WARMUP = 10  # steps that are not counted: the engine checks more in steps 0, 1, 2, 4 and 8
STEPS = 5  # steps that are counted: a cycle of LookSAM, a window of VSAM and ARSAM, XSAM's steps from search to search


def _chain() -> tuple[nn.Module, list[Any]]:
    generator = torch.Generator().manual_seed(0)
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)
        model = ManySmall(width=32, depth=80)  # 160 tensors of 528 entries on average
    return model, _batches(lambda: torch.randn(8, 32, generator=generator), 32, 8, generator)


def _resnet() -> tuple[nn.Module, list[Any]]:
    generator = torch.Generator().manual_seed(0)
    model = build("resnet56", shape=(3, 8, 8), classes=10, seed=0)
    return model, _batches(lambda: torch.randn(8, 3, 8, 8, generator=generator), 10, 8, generator)


def _batches(inputs: Callable[[], Tensor], classes: int, size: int, generator: torch.Generator) -> list[Any]:
    """A batch for every step: inputs, classes, and the places of the examples in the training set."""
    return [
        (inputs(), torch.randint(classes, (size,), generator=generator), torch.arange(size))
        for _ in range(WARMUP + STEPS)
    ]


CASES: dict[str, Callable[[], tuple[nn.Module, list[Any]]]] = {"160-tensors": _chain, "resnet56": _resnet}
# The fields that a method must be given, or that let the counted steps see all that it does.
FIELDS: dict[str, str] = {
    "ausam": "examples=8,warmup=1",
    "late": "start=1",
    "momentum-sam": "rho=0.1",
    "vsam": "window=5,blocks=2",
    "arsam": "window=5,blocks=2",
    "rst": "s=0.5",
    "xsam": "every=5",
}
NORMALIZED = ("sam-on",)  # methods that perturb normalization layers alone


@dataclass(frozen=True)
class Count:
    """What the steps of a method launch beyond their passes.

    Attributes:
        method: The method, as text.
        optimizer: The base optimizer.
        passes: Passes of a step, on average.
        launches: Launches of a step beyond its passes, on average.
        most: The launches of the step with most of them.
        least: The launches of the step with fewest.
        vectors: Bytes read and written by a step beyond its passes, in multiples of the parameters, on average.
        bytes: The same in bytes.
        calls: The launches of the step with most of them, by operation.
    """

    method: str
    optimizer: str
    passes: float
    launches: float
    most: int
    least: int
    vectors: float
    bytes: float
    calls: dict[str, int]


def text_of(name: str) -> str:
    """A method's name with the fields that it is counted with."""
    return f"{name}:{FIELDS[name]}" if name in FIELDS else name


def bases_of(name: str) -> tuple[Callable[..., Optimizer], ...]:
    """What makes the base optimizers that a method is counted with."""
    # AdaSAM needs AMSGrad. SAMPa and Momentum-SAM read the base optimizer, so its kind matters.
    return {"adasam": (_amsgrad,), "sampa": (_sgd, _adamw), "momentum-sam": (_sgd, _adamw)}.get(name, (_sgd,))


def count(case: str, method: str, base: Callable[..., Optimizer]) -> Count:
    """Count the launches of a method's steps.

    Args:
        case: A key of ``CASES``.
        method: The method as text, such as ``"vsam:window=5"``.
        base: Makes the base optimizer from the parameters.
    """
    model, batches = _case(case)
    optimizer, counter = base(model.parameters()), Launches()
    engine = lowland.Engine(make(method), model, optimizer, _losses, total_steps=len(batches))
    steps: list[tuple[int, int, Counter[str]]] = []
    with elsewhere():
        for number, batch in enumerate(batches):
            if number == WARMUP:
                before = replace(engine.cost)
            counter.bytes, counter.calls = 0, Counter()
            with counter if number >= WARMUP else nullcontext():
                engine.backward(batch)
            if number >= WARMUP:
                steps.append((counter.launches, counter.bytes, counter.calls))
            optimizer.step()
            optimizer.zero_grad()
    most = max(steps, key=lambda step: step[0])
    size = sum(p.numel() * p.element_size() for p in model.parameters())
    moved = sum(step[1] for step in steps) / len(steps)
    return Count(
        method=method,
        optimizer=type(optimizer).__name__,
        passes=(engine.cost.probes - before.probes) / len(steps),
        launches=sum(step[0] for step in steps) / len(steps),
        most=most[0],
        least=min(step[0] for step in steps),
        vectors=moved / size,
        bytes=moved,
        calls=dict(most[2].most_common()),
    )


def _case(name: str) -> tuple[nn.Module, list[Any]]:
    if name not in CASES:
        raise UnknownNameError("case", name, CASES)
    return CASES[name]()


_losses = Criterion(
    uncounted(lambda model, batch: model(batch[0])),
    uncounted(lambda logits, batch: cross_entropy(logits, batch[1], reduction="none")),
)


def _sgd(params: Any) -> Optimizer:
    return SGD(params, lr=1e-4, momentum=0.9, weight_decay=5e-4)


def _adamw(params: Any) -> Optimizer:
    return AdamW(params, lr=1e-4)


def _amsgrad(params: Any) -> Optimizer:
    return Adam(params, lr=1e-4, amsgrad=True)


def measure(case: str, tick: Callable[[], None] | None = None) -> dict[str, Any]:
    """Count the launches of all methods on one case.

    Args:
        case: A key of ``CASES``.
        tick: Called after every method.

    Returns:
        ``case``, ``tensors``, ``parameters``; ``steps``, the number of steps that are counted; ``counts``: the fields
        of a :class:`Count` for every method and optimizer; and ``left_out``: the methods that need normalization
        layers, where the model has none.
    """
    model = _case(case)[0]
    normalized = any(isinstance(m, nn.BatchNorm2d) for m in model.modules())
    left_out = [name for name in METHODS if name in NORMALIZED and not normalized]
    counts = []
    for name in METHODS:
        if name not in left_out:
            counts += [count(case, text_of(name), base) for base in bases_of(name)]
        if tick is not None:
            tick()
    return {
        "case": case,
        "tensors": len(list(model.parameters())),
        "parameters": sum(p.numel() for p in model.parameters()),
        "steps": STEPS,
        "counts": [vars(c) for c in counts],
        "left_out": left_out,
    }
