"""States a model is put into for one pass, and taken out of again whatever happens."""

from __future__ import annotations

import random
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

from lowland.core.errors import ArgumentError

_traceless = 0  # passes under way that leave no trace; of the process, since backward may recompute in another thread


def displaced() -> bool:
    """Whether the pass under way must leave no trace, because another one reports the step's loss and statistics.

    lowland puts buffers and tensors in attributes back by itself. State of another kind, such as a Python counter or an
    object outside of the model, is updated once per step with it::

        def forward(self, x):
            if not lowland.displaced():
                self.calls += 1

    It is true in SAM's second pass and in the first of SAMPa's two; false in the pass that reports, even if that one is
    displaced as in SAMPa and Momentum-SAM, and outside of steps.
    """
    return _traceless > 0


@contextmanager
def traceless() -> Iterator[None]:
    """A pass that must leave no trace."""
    global _traceless
    _traceless += 1
    try:
        yield
    finally:
        _traceless -= 1


def modules_of(model: nn.Module) -> list[nn.Module]:
    """All modules, each once, as ``model.modules()`` gives them in another order and at five times the price."""
    modules, seen = [model], {id(model)}
    for m in modules:  # grows
        for child in m._modules.values():
            if child is not None and id(child) not in seen:
                seen.add(id(child))
                modules.append(child)
    return modules


def captured(model: nn.Module) -> set[nn.Module]:
    """The modules at or below one with a forward of its instance's own, such as a captured CUDA graph.

    Wrappers that keep what they wrap, as ``functools.wraps`` does, are none.
    """
    tops = [m for m in model.modules() if "forward" in vars(m) and not hasattr(vars(m)["forward"], "__wrapped__")]
    return {part for m in tops for part in m.modules()}


@contextmanager
def only(params: Sequence[Tensor], wrt: Sequence[bool]) -> Iterator[None]:
    """Differentiate the chosen parameters alone, so that backward does not work for the others."""
    others = [p for p, wanted in zip(params, wrt, strict=True) if not wanted and p.requires_grad]
    try:
        for p in others:
            p.requires_grad_(False)
        yield
    finally:
        for p in others:
            p.requires_grad_(True)


def compiled(model: nn.Module) -> bool:
    """Whether any part of the model runs through ``torch.compile``.

    Each set of flags that `only` sets would be compiled anew, so there ``backward(inputs=…)`` names what to compute.
    That saves less: a compiled backward computes all gradients of its graph.
    """
    # By its attribute: the class lives in torch._dynamo, whose import takes seconds.
    return any("_orig_mod" in m._modules or m._compiled_call_impl is not None for m in model.modules())


class SharedRNG:
    """The same random numbers, hence the same dropout masks, in all passes of a step.

    Rewound are torch's generators of the host and of the device, Python's ``random`` and NumPy's global one, and those
    that model and loss function keep: ``torch.Generator``, ``random.Random``, and NumPy's.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.saved: tuple[Any, ...] | None = None
        self._own: list[Any] = []

    def begin(self, own: Sequence[Any] = ()) -> None:
        """A new step: its first pass draws freely; ``own`` are generators that model and loss function keep."""
        self.saved, self._own = None, list(own)

    def rewind(self) -> None:
        """Go back to where the step's first pass began."""
        module, numpy = _generators(self.device), sys.modules.get("numpy")
        if self.saved is None:
            there = None if module is None else module.get_rng_state(self.device)
            legacy = numpy and numpy.random.get_state()
            self.saved = torch.get_rng_state(), there, random.getstate(), legacy, [*map(_state_of, self._own)]
            return
        host, there, python, legacy, states = self.saved
        torch.set_rng_state(host)
        if module is not None:
            module.set_rng_state(there, self.device)
        random.setstate(python)
        if legacy is not None and numpy is not None:
            numpy.random.set_state(legacy)
        for generator, state in zip(self._own, states, strict=True):
            _set_state(generator, state)


def _state_of(generator: Any) -> Any:
    """What a generator draws from."""
    if hasattr(generator, "bit_generator"):
        return generator.bit_generator.state
    return generator.getstate() if isinstance(generator, random.Random) else generator.get_state()


def _set_state(generator: Any, state: Any) -> None:
    if hasattr(generator, "bit_generator"):
        generator.bit_generator.state = state
    elif isinstance(generator, random.Random):
        generator.setstate(state)
    else:
        generator.set_state(state)


def _generators(device: torch.device) -> Any:
    """The module with the random numbers of a device, such as ``torch.cuda``; None for the host.

    Raises:
        ArgumentError: This kind of device gives no access to its random numbers.
    """
    if device.type in ("cpu", "meta"):
        return None
    backend: Any = getattr(torch, device.type, None)
    if not all(hasattr(backend, name) for name in ("get_rng_state", "set_rng_state")):
        raise ArgumentError(
            f"random numbers of a pass must be put aside on the model's device, but torch cannot do so on {device}; "
            "train there without dropout and with rng='free', one probe at a time"
        )
    if device.type == "mps":  # one device, whose functions take no argument
        return SimpleNamespace(
            get_rng_state=lambda _: backend.get_rng_state(), set_rng_state=lambda state, _: backend.set_rng_state(state)
        )
    return backend


def seeds(count: int, *place: int) -> list[int]:
    """Seeds for passes that are asked together, from the global seed and a place in the training.

    They take nothing from the global stream of random numbers, so that a training without dropout draws from it what
    it would draw anyway, and they are the same on all ranks that were seeded alike.
    """
    stream = random.Random(hash((torch.initial_seed(), *place)))
    return [stream.getrandbits(62) for _ in range(count)]


@contextmanager
def branch(device: torch.device, seed: int) -> Iterator[None]:
    """Random numbers of their own, after which the global ones go on as if none had been drawn."""
    module = _generators(device)
    host, there = torch.get_rng_state(), None if module is None else module.get_rng_state(device)
    try:
        torch.default_generator.manual_seed(seed)  # torch.manual_seed would seed every device, and takes its time
        if module is not None:
            fresh = torch.Generator(device).manual_seed(seed)
            module.set_rng_state(fresh.get_state(), device)
        yield
    finally:
        torch.set_rng_state(host)
        if module is not None:
            module.set_rng_state(there, device)
