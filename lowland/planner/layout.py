"""How a step is divided over ranks, and over passes of one rank."""

from __future__ import annotations

import math
from dataclasses import dataclass

from lowland.core import checks
from lowland.planner.asks import Ask, Step


@dataclass(frozen=True, kw_only=True, order=True)
class Layout:
    """How the passes of a step are divided.

    Args:
        probe: The groups of ranks that divide the probes of an ask, >= 1.
        data: The parts of the batch in each group, one a rank, >= 1.
        micro_batch: The most examples in one forward pass; None does not cut.
    """

    probe: int = 1
    data: int = 1
    micro_batch: int | None = None

    def __post_init__(self) -> None:
        for name in ("probe", "data"):
            checks.integer(name, getattr(self, name), 1, "1 divides nothing")
        if self.micro_batch is not None:
            checks.integer("micro_batch", self.micro_batch, 1, "None does not cut")

    @property
    def ranks(self) -> int:
        """The number of ranks."""
        return self.probe * self.data

    @property
    def width(self) -> int:
        """How many probes are answered at once."""
        return self.probe

    @property
    def mesh(self) -> str | None:
        """The mesh as text, such as ``probe=2,data=2``; None on one rank."""
        if self.ranks == 1:
            return None
        return ",".join(f"{name}={size}" for name, size in (("probe", self.probe), ("data", self.data)) if size > 1)

    def __str__(self) -> str:
        """The layout in words that the command line takes."""
        words = [self.mesh or "one device"]
        if self.micro_batch is not None:
            words.append(f"micro-batches of {self.micro_batch}")
        return ", ".join(words)


def suits(layout: Layout, steps: tuple[Step, ...]) -> bool:
    """Whether every probe group has something to do, and a mesh can divide the asks.

    A group without a probe of its own computes what another group computes. Passes that a mesh divides must all
    differentiate, and the same tensors.
    """
    asks = [ask for step in steps for ask in step if len(ask) > 1]
    if layout.width == 1:
        return True
    alike = all(len({(p.tensors > 0, p.tensors) for p in ask}) == 1 for ask in asks)
    return alike and max(map(len, asks), default=1) >= layout.width


def waves(ask: Ask, width: int) -> int:
    """In how many rounds ``width`` groups answer an ask."""
    return math.ceil(len(ask) / width)


def layouts(ranks: int, batch: int | None) -> list[Layout]:
    """All ways to divide a step over this number of ranks, without micro-batches.

    Args:
        ranks: The number of ranks, >= 1.
        batch: The examples of a step, which the data dimension must divide; None if the batch cannot be cut.

    Example:
        >>> [str(layout) for layout in layouts(4, 64)]
        ['data=4', 'probe=2,data=2', 'probe=4']
    """
    sizes = [probe for probe in range(1, ranks + 1) if ranks % probe == 0]
    made = [Layout(probe=probe, data=ranks // probe) for probe in sizes]
    return [layout for layout in made if layout.data == 1 or (batch is not None and batch % layout.data == 0)]
