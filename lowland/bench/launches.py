"""Counts what a method launches beyond its passes: operator calls and bytes, the same on every machine.

On a GPU every kernel costs some microseconds of the host, whatever it computes. So the arithmetic of a method on many
small tensors costs its number of launches. The counts are of the branches that a GPU takes; no GPU is needed.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from contextvars import ContextVar
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.optim import SGD, Adam, AdamW, Optimizer
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

import lowland
from lowland.core.at_hand import elsewhere
from lowland.core.errors import ParameterError, UnknownNameError
from lowland.lab.models import build
from lowland.methods import METHODS, make

# Operations that launch nothing: views, and memory without values.
FREE = frozenset(
    "alias as_strided detach empty empty_like empty_strided expand new_empty new_empty_strided permute reshape select "
    "slice split split_with_sizes squeeze t transpose unbind unsqueeze view _unsafe_view _reshape_alias lift_fresh "
    "_foreach_tensor_empty_like".split()
)
OVERWRITES = frozenset(("copy_", "_foreach_copy_", "zero_", "_foreach_zero_", "fill_"))  # do not read what they write
TENSORS = 110  # a list operation of torch launches a kernel for this many tensors at most
JOINED = 128  # torch.cat likewise
_forward = ContextVar("forward", default=False)  # whether forward runs, which is not counted
WARMUP = 9  # steps that are not counted: the engine checks more in steps 0, 1, 2, 4 and 8
STEPS = 6  # steps that are counted, up to step 14: they have all steps of a cycle of 5


class Launches(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts the operations in its context, except those of forward and backward.

    Attributes:
        launches: Kernels that a GPU would be given. An operation on a list counts once for every 110 of its tensors,
            or once for each where torch has no kernel for lists: where tensors of a second list have other shapes.
        bytes: Bytes that the operations read and write.
        calls: The launches of each operation, by name.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.bytes = 0
        self.calls: Counter[str] = Counter()

    @property
    def launches(self) -> int:
        """See the class."""
        return sum(self.calls.values())

    def __torch_dispatch__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Run the operation and count it."""
        out = func(*args, **(kwargs or {}))
        schema: Any = func._schema  # type: ignore[attr-defined]
        name = schema.name.removeprefix("aten::")
        if not _forward.get() and name not in FREE and torch._C._current_graph_task_id() == -1:
            self.calls[name] += _kernels(name, args)
            self.bytes += _moved(name, schema, args, kwargs or {}, out)
        return out


def _kernels(name: str, args: Sequence[Any]) -> int:
    """How many kernels a GPU runs for an operation."""
    if name == "cat":
        return -(-len(args[0]) // JOINED)
    if not name.startswith("_foreach"):
        return 1
    first = args[0]
    lists = [a for a in args[1:] if isinstance(a, list | tuple) and len(a) == len(first) and isinstance(a[0], Tensor)]
    fits = all(x.shape == y.shape for other in lists for x, y in zip(other, first, strict=True))
    return -(-len(first) // TENSORS) if fits else len(first)


def _moved(name: str, schema: Any, args: Sequence[Any], kwargs: Mapping[str, Any], out: Any) -> int:
    """The bytes that an operation reads and writes."""
    given = dict(zip([a.name for a in schema.arguments], args, strict=False)) | dict(kwargs)
    total, seen = 0, set()
    for argument in schema.arguments:
        size = _size(given.get(argument.name), seen)
        written = argument.alias_info is not None and argument.alias_info.is_write
        read = not written or not (name in OVERWRITES or argument.kwarg_only)
        total += size * (int(written) + int(read))
    return total + _size(out, seen)


def _size(value: Any, seen: set[int]) -> int:
    """The bytes of all tensors in a value, each once."""
    total = 0
    for leaf in pytree.tree_leaves(value):
        if isinstance(leaf, Tensor) and id(leaf) not in seen:
            seen.add(id(leaf))
            total += leaf.numel() * leaf.element_size()
    return total


class Chain(nn.Module):
    """A residual chain of 80 linear layers: 160 parameter tensors of 528 entries on average."""

    def __init__(self, width: int = 32, depth: int = 80) -> None:
        super().__init__()
        self.layers = nn.ModuleList([nn.Linear(width, width) for _ in range(depth)])

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(B, 32)`` to ``(B, 32)``."""
        for layer in self.layers:
            x = x + 0.01 * torch.tanh(layer(x))
        return x


def _chain() -> tuple[nn.Module, list[Any]]:
    generator = torch.Generator().manual_seed(0)
    return Chain(), _batches(lambda: torch.randn(8, 32, generator=generator), 32, 8, generator)


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
    "vsam": "window=6,blocks=2,warmup=1",
    "arsam": "window=6,blocks=2,warmup=1",
    "rst": "s=0.5",
}
ADAM = ("sampa", "momentum-sam")  # methods that read the base optimizer, which are counted with Adam, too


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


def count(method: lowland.Method, case: str, base: Callable[..., Optimizer], text: str = "") -> Count:
    """Count the launches of a method's steps.

    Args:
        method: The method.
        case: A key of ``CASES``.
        base: Makes the base optimizer from the parameters.
        text: The method as text.
    """
    if case not in CASES:
        raise UnknownNameError("case", case, CASES)
    model, batches = CASES[case]()
    optimizer, counter = base(model.parameters()), Launches()
    engine = lowland.Engine(method, model, optimizer, _losses, total_steps=len(batches))
    steps: list[tuple[int, int, Counter[str]]] = []
    with elsewhere():
        for number, batch in enumerate(batches):
            if number == WARMUP:
                before = replace(engine.cost)
            counter.bytes, counter.calls = 0, Counter()
            with counter:
                engine.backward(batch)
            if number >= WARMUP:
                steps.append((counter.launches, counter.bytes, counter.calls))
            optimizer.step()
            optimizer.zero_grad()
    most = max(steps, key=lambda step: step[0])
    size = sum(p.numel() * p.element_size() for p in model.parameters())
    moved = sum(step[1] for step in steps) / len(steps)
    return Count(
        method=text or repr(method),
        optimizer=type(optimizer).__name__,
        passes=(engine.cost.probes - before.probes) / len(steps),
        launches=sum(step[0] for step in steps) / len(steps),
        most=most[0],
        least=min(step[0] for step in steps),
        vectors=moved / size,
        bytes=moved,
        calls=dict(most[2].most_common()),
    )


def _losses(model: nn.Module, batch: Any) -> Tensor:
    """Cross entropy of each example, uncounted."""
    before = _forward.set(True)
    try:
        return cross_entropy(model(batch[0]), batch[1], reduction="none")
    finally:
        _forward.reset(before)


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
        ``case``, ``tensors``, ``parameters``, and ``counts``: a :class:`Count` for every method and optimizer.
    """
    counts = []
    for name in METHODS:
        text = f"{name}:{FIELDS[name]}" if name in FIELDS else name
        for base in (_amsgrad,) if name == "adasam" else (_sgd, _adamw) if name in ADAM else (_sgd,):
            with suppress(ParameterError):  # SAM-ON needs a model with normalization layers
                counts.append(count(make(text), case, base, text))
        if tick is not None:
            tick()
    params = list(CASES[case]()[0].parameters())
    numbers = sum(p.numel() for p in params)
    return {"case": case, "tensors": len(params), "parameters": numbers, "counts": [vars(c) for c in counts]}
