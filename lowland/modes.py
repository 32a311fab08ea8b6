"""States a model is put into for one pass, and taken out of again whatever happens."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm, _NormBase

from lowland import vec

# In training mode these forwards use the batch's statistics and, without the flag, touch no buffer.
_HEEDS_FLAG = (_BatchNorm.forward, nn.SyncBatchNorm.forward)


@contextmanager
def frozen_stats(model: nn.Module) -> Iterator[None]:
    """Leave running statistics as they are, though layers in training mode still use the batch's own.

    Covers all BatchNorm and InstanceNorm layers and their subclasses: running mean, running variance and
    ``num_batches_tracked``. Torch's own BatchNorm is told not to track, which costs nothing; layers with a forward
    of their own get their buffers back by copy, after backward has read them.
    """
    norms = [m for m in model.modules() if isinstance(m, _NormBase) and m.training and m.track_running_stats]
    told = [m for m in norms if type(m).forward in _HEEDS_FLAG and "forward" not in vars(m)]
    buffers = [b for m in norms if m not in set(told) for b in m.buffers(recurse=False)]
    saved = vec.clone(buffers)
    try:
        for m in told:
            m.track_running_stats = False
        yield
    finally:
        for m in told:
            m.track_running_stats = True
        with torch.no_grad():
            for buffer, before in zip(buffers, saved, strict=True):
                buffer.copy_(before)


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

    Each set of flags that `only` sets would be compiled anew, so there the backward pass is told what to compute. What
    it saves is less: a compiled backward computes all gradients of its graph.
    """
    # By its attribute: the class lives in torch._dynamo, whose import takes seconds.
    return any("_orig_mod" in m._modules or m._compiled_call_impl is not None for m in model.modules())


class SharedRNG:
    """The same random numbers, hence the same dropout masks, in all passes of a step."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.saved: tuple[Tensor, Tensor | None] | None = None

    def begin(self) -> None:
        """A new step: its first pass draws freely."""
        self.saved = None

    def rewind(self) -> None:
        """Go back to where the step's first pass began."""
        cuda = self.device.type == "cuda"
        if self.saved is None:
            self.saved = torch.get_rng_state(), torch.cuda.get_rng_state(self.device) if cuda else None
            return
        torch.set_rng_state(self.saved[0])
        if self.saved[1] is not None:
            torch.cuda.set_rng_state(self.saved[1], self.device)


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
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.default_generator.manual_seed(seed)  # torch.manual_seed would seed every device, and takes its time
        if device.type == "cuda":
            with torch.cuda.device(device):
                torch.cuda.manual_seed(seed)
        yield
