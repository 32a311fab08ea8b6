"""Measures the cost of a method beyond its gradients: step times in one process, and peak memory.

All variants take turns, step by step, so that changes of the machine's speed affect all of them alike. Figures are
medians of ratios between consecutive steps. The sparse variants differentiate a random subset of the tensors, so
their cost varies from step to step. They take a step only in every fourth round, to keep the measurement short.
"""

from __future__ import annotations

import platform
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.optim import SGD

import lowland
from lowland.core import checks
from lowland.core.errors import UnknownNameError
from lowland.lab.models import build
from lowland.planner.memory import LiveTensors

Step = Callable[[], None]
CYCLE = 5  # LookSAM's k, and the number of steps its cost is averaged over
EVERY = 4  # rounds from one step of a sparse variant to the next
SPARSE = "lowland sl-sam(s=0.2)"
WARMUP = CYCLE  # rounds that are not counted; a multiple of CYCLE, so that counting begins with a cycle


class ManySmall(nn.Module):
    """A residual chain of small linear layers, with two parameter tensors each and hardly any arithmetic."""

    def __init__(self, width: int = 16, depth: int = 500) -> None:
        super().__init__()
        self.layers = nn.ModuleList([nn.Linear(width, width) for _ in range(depth)])

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(B, width)`` to ``(B, width)``."""
        for layer in self.layers:
            x = x + 0.01 * torch.tanh(layer(x))
        return x


@dataclass(frozen=True)
class Case:
    """A model and a batch to measure on; ``sparse`` adds gradients of some tensors only."""

    model: Callable[[], nn.Module]
    batch: tuple[Tensor, Tensor]
    sparse: bool = False


@dataclass(frozen=True, kw_only=True)
class Masked(lowland.Method):
    """Computes the gradient of a random subset of tensors, like ESAM's first pass and SL-SAM's passes."""

    fraction: float = 1.0  # the probability of each tensor

    def plan(self, engine: lowland.Engine, batch: Any) -> lowland.Plan:
        """See :meth:`lowland.methods.base.Method.plan`."""
        drawn = [False]
        while not any(drawn):
            drawn = [engine.rng.random() < self.fraction for _ in engine.params]
        reading = yield lowland.Probe(batch, wrt=None if all(drawn) else drawn)
        return reading.loss, reading.grad


def _resnet() -> Case:
    generator = torch.Generator().manual_seed(0)
    inputs, targets = torch.randn(64, 3, 32, 32, generator=generator), torch.randint(10, (64,), generator=generator)
    return Case(lambda: build("resnet20", shape=(3, 32, 32), classes=10, seed=0), (inputs, targets), sparse=True)


def _small() -> Case:
    generator = torch.Generator().manual_seed(0)
    inputs, targets = torch.randn(8, 16, generator=generator), torch.randint(10, (8,), generator=generator)
    return Case(ManySmall, (inputs, targets))


CASES: dict[str, Callable[[], Case]] = {"resnet20-batch64": _resnet, "1000-small-tensors": _small}


def loss_fn(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    """Mean cross entropy."""
    return cross_entropy(model(batch[0]), batch[1])


def _base(model: nn.Module) -> SGD:
    return SGD(model.parameters(), lr=1e-4, momentum=0.9, weight_decay=5e-4)


def _bare(case: Case, gradients: int) -> Step:
    model = case.model()
    optimizer = _base(model)

    def step() -> None:
        for _ in range(gradients):
            optimizer.zero_grad()
            loss_fn(model, case.batch).backward()  # type: ignore[no-untyped-call]
        optimizer.step()

    return step


def _ours(case: Case, method: lowland.Method) -> Step:
    model = case.model()
    optimizer = _base(model)
    engine = lowland.Engine(method, model, optimizer, loss_fn)

    def step() -> None:
        optimizer.zero_grad()
        engine.backward(case.batch)
        optimizer.step()

    return step


def _gradient(case: Case, fraction: float) -> Step:
    """A step without the optimizer's update, whose time would also depend on the number of gradients."""
    model = case.model()
    optimizer = _base(model)
    engine = lowland.Engine(Masked(fraction=fraction), model, optimizer, loss_fn)

    def step() -> None:
        optimizer.zero_grad()
        engine.backward(case.batch)

    return step


def _peer(case: Case) -> Step | None:
    """pytorch_optimizer's SAM with the two calls of its documentation; None if it is not installed."""
    try:
        from pytorch_optimizer import SAM
    except ImportError:
        return None
    model = case.model()
    optimizer = SAM(model.parameters(), base_optimizer=SGD, rho=0.05, lr=1e-4, momentum=0.9, weight_decay=5e-4)

    def step() -> None:
        loss_fn(model, case.batch).backward()  # type: ignore[no-untyped-call]
        optimizer.first_step(zero_grad=True)
        loss_fn(model, case.batch).backward()  # type: ignore[no-untyped-call]
        optimizer.second_step(zero_grad=True)

    return step


def _variants(case: Case) -> dict[str, Step]:
    steps = {
        "plain": _bare(case, 1),
        "two gradients": _bare(case, 2),
        "lowland plain": _ours(case, lowland.Plain()),
        "lowland sam": _ours(case, lowland.SAM()),
        "lowland looksam": _ours(case, lowland.LookSAM(k=CYCLE)),
        "lowland sampa": _ours(case, lowland.SAMPa()),
    }
    peer = _peer(case)
    return steps if peer is None else {**steps, "pytorch_optimizer sam": peer}


def _sparse_variants(case: Case) -> dict[str, Step]:
    if not case.sparse:
        return {}
    return {
        "full gradient": _gradient(case, 1.0),
        "gradient of 60 % of the tensors": _gradient(case, 0.6),
        "gradient of 20 % of the tensors": _gradient(case, 0.2),
        SPARSE: _ours(case, lowland.SLSAM(s=0.2)),
    }


@contextmanager
def _threads(count: int) -> Iterator[None]:
    previous = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(previous)


def measure(name: str, *, rounds: int = 60, tick: Callable[[], None] | None = None) -> dict[str, Any]:
    """Measure times and memory of one case on one thread.

    Args:
        name: A key of ``CASES``.
        rounds: Rounds that count, >= 5; every variant takes one step a round, sparse variants in every fourth round.
        tick: Called after every round.

    Returns:
        ``median_ms`` per variant, ``ratios`` between them, ``rounds``, and ``memory``: extra bytes at the peak of a
        step, as a multiple of the parameters.
    """
    if name not in CASES:
        raise UnknownNameError("case", name, CASES)
    checks.integer("rounds", rounds, CYCLE, "a LookSAM cycle takes 5 rounds; 60 give a steady median")
    case = CASES[name]()
    with _threads(1):
        steps, sparse = _variants(case), _sparse_variants(case)
        seconds: dict[str, list[float]] = {key: [] for key in (*steps, *sparse)}
        rounds -= rounds % CYCLE
        for i in range(WARMUP + rounds):
            for key, step in {**steps, **(sparse if (i - WARMUP) % EVERY == 0 else {})}.items():
                start = time.perf_counter()
                step()
                if i >= WARMUP:
                    seconds[key].append(time.perf_counter() - start)
            if tick is not None:
                tick()
        memory = _memory(case)
    return {
        "case": name,
        "rounds": rounds,
        "median_ms": {key: round(statistics.median(t) * 1e3, 3) for key, t in seconds.items()},
        "ratios": _ratios(seconds),
        "memory": memory,
    }


def _ratios(seconds: dict[str, list[float]]) -> dict[str, float]:
    def ratio(a: str, b: str, cycle: int = 1) -> float:
        # The mean over the cycle of the medians per step of the cycle: a single slow step has no influence.
        stride = EVERY if len(seconds[a]) < len(seconds[b]) else 1
        pairs = [x / y for x, y in zip(seconds[a], seconds[b][::stride], strict=True)]
        return round(statistics.fmean(statistics.median(pairs[i::cycle]) for i in range(cycle)), 4)

    ratios = {
        "lowland plain / plain": ratio("lowland plain", "plain"),
        "lowland sam / two gradients": ratio("lowland sam", "two gradients"),
        "lowland sam / plain": ratio("lowland sam", "plain"),
        "lowland sampa / two gradients": ratio("lowland sampa", "two gradients"),
        f"lowland looksam(k={CYCLE}) / plain, mean over the cycle": ratio("lowland looksam", "plain", CYCLE),
    }
    if "pytorch_optimizer sam" in seconds:
        ratios["lowland sam / pytorch_optimizer sam"] = ratio("lowland sam", "pytorch_optimizer sam")
        ratios["pytorch_optimizer sam / two gradients"] = ratio("pytorch_optimizer sam", "two gradients")
    if SPARSE in seconds:
        ratios[f"{SPARSE} / lowland sam"] = ratio(SPARSE, "lowland sam")
        for percent, note in ((60, ", as esam's first pass"), (20, "")):
            name = f"gradient of {percent} % of the tensors"
            ratios[f"{name} / full gradient{note}"] = ratio(name, "full gradient")
    return ratios


def _memory(case: Case) -> dict[str, float]:
    """Peak bytes of a step beyond a plain step's peak, in multiples of the parameters."""
    size = sum(p.numel() * p.element_size() for p in case.model().parameters())

    def peak(method: lowland.Method | None) -> int:
        with LiveTensors() as meter:  # entered before the model is made, so that the meter counts its tensors
            step = _bare(case, 1) if method is None else _ours(case, method)
            for _ in range(CYCLE + 1):  # includes a LookSAM refresh when the optimizer has all its buffers
                step()
        return int(meter.peak)

    plain = peak(None)
    methods: list[lowland.Method] = [lowland.SAM(), lowland.LookSAM(k=CYCLE), lowland.SAMPa()]
    methods += [lowland.SLSAM(s=0.2)] if case.sparse else []
    return {f"{type(m).__name__} extra / parameters": round((peak(m) - plain) / size, 3) for m in methods}


def machine() -> dict[str, Any]:
    """The machine and the versions that the figures were measured on."""
    return {
        "machine": platform.machine(),
        "processor": _processor(),
        "threads": 1,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "lowland": lowland.__version__,
    }


def _processor() -> str:
    try:
        with open("/proc/cpuinfo") as lines:
            return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor()
