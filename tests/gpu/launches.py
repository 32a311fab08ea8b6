"""Section launches: how many kernels a step launches beyond its passes, by count and by torch's profiler."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cache, partial
from typing import Any

import torch
from problems import loss_fn
from torch.autograd import DeviceType
from torch.optim import SGD, AdamW, Optimizer
from torch.profiler import ProfilerActivity, profile
from torch.utils import _pytree as pytree

import lowland
from gpu.checks import NO_GPU, Check
from gpu.training import CPU, here, there_are_gpus
from lowland.bench.launches import CASES, FIELDS, WARMUP
from lowland.core.at_hand import elsewhere
from lowland.methods import make
from lowland.planner.launches import Launches

CASE = "160-tensors"
Step = Callable[[], Any]
BASES: dict[str, Callable[[Any], Optimizer]] = {
    "sgd": lambda params: SGD(params, lr=1e-4, momentum=0.9, weight_decay=5e-4),
    "adamw": lambda params: AdamW(params, lr=1e-4),
}
# The most launches of a step beyond its passes, as they were counted when these lines were written.
COUNTED = {
    ("plain", "sgd"): 1,
    ("sam", "sgd"): 18,
    ("sampa", "sgd"): 43,
    ("sampa", "adamw"): 58,
    ("looksam", "sgd"): 40,
    ("micro-sam", "sgd"): 92,
    ("friendly-sam", "sgd"): 50,
    ("gsam", "sgd"): 31,
    ("momentum-sam", "sgd"): 21,
}
FEW = "no step launches more kernels beyond its passes than when this table was written"
# A bare gradient launches the kernels of a pass of theirs; micro-sam's passes are on parts of a batch.
PROFILED = [case for case in COUNTED if case[0] not in ("plain", "micro-sam")]
# An operation on one list launches a kernel for 110 tensors, as the count assumes; on two lists, for 64.
FACTOR = 2.0
SEEN = f"the profiler sees at most {FACTOR:g} times as many kernels as were counted"


def checks() -> Iterator[Check]:
    """Counts of some methods, and on a GPU their real numbers."""
    for text, base in COUNTED:
        yield Check(f"{text} with {base}, most", partial(_most, text, base), FEW, COUNTED[text, base], "launches")
    for text, base in PROFILED:
        missing = "" if there_are_gpus() else NO_GPU
        yield Check(
            f"{text} with {base}, profiled / counted", partial(_ratio, text, base), SEEN, FACTOR, missing=missing
        )


def _method(text: str) -> lowland.Method:
    return make(f"{text}:{FIELDS[text]}" if text in FIELDS else text)


@cache
def _counted(text: str, base: str) -> list[int]:
    """The launches of every step beyond its passes by count, on the branches of a GPU."""
    with elsewhere():
        return _beyond(text, base, CPU, launches_of)


def _most(text: str, base: str) -> float:
    return max(_counted(text, base))


def _ratio(text: str, base: str) -> float:
    """The launches of all steps beyond their passes that the profiler sees, divided by their count."""
    return sum(_beyond(text, base, here(), kernels_of)) / sum(_counted(text, base))


def _beyond(text: str, base: str, device: torch.device, number_of: Callable[[Step], int]) -> list[int]:
    """The launches of every step beyond its passes.

    Args:
        text: The method.
        base: A key of ``BASES``.
        device: Where it runs.
        number_of: Runs some work and says what it has launched.
    """
    model, batches = CASES[CASE]()
    model, batches = model.to(device), pytree.tree_map(lambda t: t.to(device), batches)
    optimizer = BASES[base](model.parameters())
    engine = lowland.Engine(_method(text), model, optimizer, loss_fn, total_steps=len(batches))

    def bare() -> None:
        loss_fn(model, batches[0]).mean().backward()

    number_of(bare)  # the first call loads libraries, and the profiler
    optimizer.zero_grad()
    of_a_pass = number_of(bare)
    optimizer.zero_grad()
    found = []
    for number, batch in enumerate(batches):
        before, work = engine.cost.probes, partial(engine.backward, batch)
        if number < WARMUP:
            work()
        else:
            launched, passes = number_of(work), engine.cost.probes - before
            if not 0 < of_a_pass * passes < launched:
                raise AssertionError(f"{launched} launches are seen in a step, and {of_a_pass} in a bare gradient")
            found.append(launched - of_a_pass * passes)
        optimizer.step()
        optimizer.zero_grad()
    return found


def launches_of(work: Step) -> int:
    """How many launches are counted for some work, without backward."""
    with Launches() as counter:
        work()
    return counter.launches


def kernels_of(work: Step) -> int:
    """How many kernels, copies and fills the GPU runs for some work."""
    torch.cuda.synchronize()
    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as profiler:
        work()
        torch.cuda.synchronize()
    return sum(e.device_type == DeviceType.CUDA and not e.is_user_annotation for e in profiler.events())
