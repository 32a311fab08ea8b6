"""Which layouts of a number of ranks suit a method."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from lowland.core.errors import ArgumentError
from lowland.methods.base import Method
from lowland.planner.layout import Layout, layouts, suits
from lowland.planner.rehearsal import asks_on
from lowland.planner.subject import Subject


def suitable(
    ranks: int,
    subject: Subject,
    methods: Mapping[str, Method],
    where: Callable[[Layout], bool] = lambda layout: True,
) -> list[Layout]:
    """The layouts of a number of ranks that suit one of the methods.

    Args:
        ranks: The number of ranks.
        subject: The training, whose batch is divided.
        methods: The methods by their text.
        where: Whether a layout may be chosen.

    Raises:
        ArgumentError: There is none, because the ranks can divide nothing.
    """
    possible = [each for each in layouts(ranks, subject.size) if each.data == 1 or subject.size != each.data]
    chosen = [each for each in possible if where(each) and any(fits_method(each, subject, m) for m in methods.values())]
    if not chosen:
        raise ArgumentError(undivided([ranks], [subject.size or 1]))
    return chosen


def fits_method(layout: Layout, subject: Subject, method: Method) -> bool:
    """Whether all groups of a layout have something to do in the method's steps."""
    if layout.width == 1:
        return True
    return suits(layout, asks_on(subject, method, layout.width))


def undivided(ranks: Sequence[int], sizes: Sequence[int]) -> str:
    """The message that ranks have nothing to divide."""
    alone = any(size % rank == 0 for rank in ranks for size in sizes)
    two = ", of which every rank needs two or more," if alone else ""
    return (
        f"the ranks must divide the batch or a method's probes, but {_either(ranks)} ranks divide neither the "
        f"{_either(sizes)} examples{two} nor the probes of a method; "
        f"{_remedy(ranks, sizes)}"
    )


def _remedy(ranks: Sequence[int], sizes: Sequence[int]) -> str:
    """What divides: as many examples as the ranks have parts of two, or two ranks for SAMPa."""
    fitting = [str(next(n for n in range(max(2 * rank, max(sizes)), 10**9) if n % rank == 0)) for rank in ranks]
    even = " or SAMPa" if all(rank == 2 for rank in ranks) else ""
    return f"take another number of processes, a batch of {' or '.join(fitting)} examples{even}"


def _either(numbers: Sequence[int]) -> str:
    return " or ".join(map(str, numbers))
