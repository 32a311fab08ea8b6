"""Contexts of one pass: random numbers, ``requires_grad`` of parameters, and the flag of ``lowland.displaced``."""

from __future__ import annotations

import pickle
import random
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

from lowland.core.errors import ArgumentError

_traceless = 0  # running passes that must leave no trace; global, because backward may recompute in another thread


def displaced() -> bool:
    """Whether the running pass must leave no trace, because another pass reports the step's loss and statistics.

    lowland restores buffers and tensors in attributes itself. Use this function to update other state once per step,
    such as a Python counter or an object outside the model::

        def forward(self, x):
            if not lowland.displaced():
                self.calls += 1

    It is true in SAM's second pass and in the first of SAMPa's two passes. It is false outside steps and in the pass
    that reports, even if the weights are displaced there, as in SAMPa and Momentum-SAM.
    """
    return _traceless > 0


@contextmanager
def traceless() -> Iterator[None]:
    """The context of a pass that must leave no trace; in it, :func:`displaced` is true."""
    global _traceless
    _traceless += 1
    try:
        yield
    finally:
        _traceless -= 1


def modules_of(model: nn.Module) -> list[nn.Module]:
    """All modules, each once; five times as fast as ``model.modules()``, and in another order."""
    modules, seen = [model], {id(model)}
    for m in modules:  # the list grows in this loop
        for child in m._modules.values():
            if child is not None and id(child) not in seen:
                seen.add(id(child))
                modules.append(child)
    return modules


def captured(model: nn.Module) -> set[nn.Module]:
    """The modules whose instance has its own ``forward``, such as a captured CUDA graph, and the modules inside them.

    A wrapper with ``__wrapped__``, as ``functools.wraps`` makes it, does not count.
    """
    own = [m for m in modules_of(model) if "forward" in vars(m)]
    tops = [m for m in own if not hasattr(vars(m)["forward"], "__wrapped__")]
    return {part for m in tops for part in m.modules()}


@contextmanager
def only(params: Sequence[Tensor], wrt: Sequence[bool]) -> Iterator[None]:
    """Freeze all but the chosen parameters, so that backward does not compute the gradients of the others."""
    others = [p for p, chosen in zip(params, wrt, strict=True) if not chosen and p.requires_grad]
    try:
        for p in others:
            p.requires_grad_(False)
        yield
    finally:
        for p in others:
            p.requires_grad_(True)


def compiled_backward() -> bool:
    """Whether compiled autograd runs backward. It traces hooks of parameters, and may call them late or together."""
    module = sys.modules.get("torch._dynamo.compiled_autograd")  # an import takes seconds
    return bool(getattr(module, "compiled_autograd_enabled", False))


def compiled(model: nn.Module) -> bool:
    """Whether ``torch.compile`` compiles any part of the model.

    Every combination of flags that :func:`only` sets would be compiled again. So ``backward(inputs=…)`` chooses the
    parameters of a compiled model. This saves less time, because a compiled backward computes all gradients.
    """
    # Known by an attribute, because the class is in torch._dynamo, whose import takes seconds.
    return any(
        "_orig_mod" in m._modules
        or m._compiled_call_impl is not None
        or hasattr(m.forward, "_torchdynamo_orig_callable")
        for m in modules_of(model)
    )


class SharedRNG:
    """Rewinds random numbers, so that all passes of a step have the same dropout masks.

    It rewinds torch's generators of CPU and device, Python's ``random``, NumPy's global generator, and the generators
    that the model and the loss function keep: ``torch.Generator``, ``random.Random``, and NumPy's.

    Args:
        device: The model's device.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.saved: tuple[Any, ...] | None = None
        self._own: list[Any] = []

    def begin(self, own: Sequence[Any] = ()) -> None:
        """Begin a step; its first pass continues the stream of random numbers.

        Args:
            own: The generators that the model and the loss function keep.
        """
        self.saved, self._own = None, list(own)

    def rewind(self) -> None:
        """Return to the random state before the first pass of the step; before the first pass, save the state."""
        module, numpy = _generators(self.device), sys.modules.get("numpy")
        if self.saved is None:
            on_device = None if module is None else module.get_rng_state(self.device)
            of_numpy = numpy and numpy.random.get_state()
            self.saved = torch.get_rng_state(), on_device, random.getstate(), of_numpy, [*map(_state_of, self._own)]
            return
        on_cpu, on_device, python, of_numpy, states = self.saved
        torch.set_rng_state(on_cpu)
        if module is not None:
            module.set_rng_state(on_device, self.device)
        random.setstate(python)
        if of_numpy is not None and numpy is not None:
            numpy.random.set_state(of_numpy)
        for generator, state in zip(self._own, states, strict=True):
            _set_state(generator, state)

    def moved(self) -> bool:
        """Whether any generator has drawn a number since the state was saved."""
        if self.saved is None:
            return False
        module, numpy = _generators(self.device), sys.modules.get("numpy")
        on_cpu, on_device, python, of_numpy, states = self.saved
        return (
            not torch.equal(torch.get_rng_state(), on_cpu)
            or (module is not None and not torch.equal(module.get_rng_state(self.device), on_device))
            or random.getstate() != python
            or (numpy is not None and of_numpy is not None and not _same(numpy.random.get_state(), of_numpy))
            or not all(_same(_state_of(g), state) for g, state in zip(self._own, states, strict=True))
        )


def _same(state: Any, other: Any) -> bool:
    """Whether two states of a generator are equal; those of NumPy hold arrays."""
    if isinstance(state, Tensor):
        return torch.equal(state, other)
    return pickle.dumps(state) == pickle.dumps(other)


def _state_of(generator: Any) -> Any:
    """The state of a generator of torch, Python or NumPy."""
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
    """The module with the random state of a device, such as ``torch.cuda``; None for the CPU.

    Raises:
        ArgumentError: torch cannot save the random state of this kind of device.
    """
    if device.type in ("cpu", "meta"):
        return None
    backend: Any = getattr(torch, device.type, None)
    if not all(hasattr(backend, name) for name in ("get_rng_state", "set_rng_state")):
        raise ArgumentError(
            f"random numbers of a pass must be put aside on the model's device, but torch cannot do so on {device}; "
            "train there without dropout and with rng='free', one probe at a time"
        )
    if device.type == "mps":  # there is one device, so its functions take no device
        return SimpleNamespace(
            get_rng_state=lambda _: backend.get_rng_state(), set_rng_state=lambda state, _: backend.set_rng_state(state)
        )
    return backend


def seeds(count: int, *place: int) -> list[int]:
    """Seeds for passes that are asked together, computed from the global seed and a position in training.

    This does not draw from the global stream of random numbers, so the rest of a training draws the same numbers. Ranks
    with equal global seeds get equal seeds.

    Args:
        count: The number of seeds.
        place: The position, such as the number of the step.
    """
    stream = random.Random(hash((torch.initial_seed(), *place)))
    return [stream.getrandbits(62) for _ in range(count)]


@contextmanager
def branch(device: torch.device, seed: int) -> Iterator[None]:
    """Seed torch's global random numbers for one pass, and restore their state at the end."""
    module = _generators(device)
    on_cpu, on_device = torch.get_rng_state(), None if module is None else module.get_rng_state(device)
    try:
        torch.default_generator.manual_seed(seed)  # torch.manual_seed would seed all devices, and is slow
        if module is not None:
            fresh = torch.Generator(device).manual_seed(seed)
            module.set_rng_state(fresh.get_state(), device)
        yield
    finally:
        torch.set_rng_state(on_cpu)
        if module is not None:
            module.set_rng_state(on_device, device)
