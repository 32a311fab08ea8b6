"""What messages between devices take: links, collectives, and collectives of devices on several hosts.

A message of n bytes over a link takes ``latency + n / bandwidth`` seconds: the alpha-beta model of Hockney, "The
communication challenge for MPP: Intel Paragon and Meiko CS-2", Parallel Computing 20, 1994. A device sends and receives
at the same time, and adding takes no time. The collectives are those of Thakur, Rabenseifner and Gropp, "Optimization
of Collective Communication Operations in MPICH", International Journal of High Performance Computing Applications 19,
2005.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias, get_args

from lowland.core import checks
from lowland.core.errors import ArgumentError

Algorithm: TypeAlias = Literal["ring", "tree", "halving"]
ALGORITHMS: tuple[Algorithm, ...] = get_args(Algorithm)


@dataclass(frozen=True)
class Link:
    """A link between two devices or two hosts.

    Args:
        latency: Seconds that a message takes besides its bytes, >= 0.
        bandwidth: Bytes per second in each direction, > 0; infinity is allowed.

    Raises:
        ArgumentError: An argument breaks its rule.

    Example:
        >>> Link(latency=0.5, bandwidth=1e9)(2e9)
        2.5
    """

    latency: float
    bandwidth: float

    def __post_init__(self) -> None:
        checks.at_least("latency", self.latency, 0, "give seconds, such as 5e-6")
        if not self.bandwidth > 0:
            raise ArgumentError(
                f"bandwidth must be > 0, but is {self.bandwidth!r}; give bytes per second, such as 1e10"
            )

    def __call__(self, size: float) -> float:
        """The seconds of a message of ``size`` bytes."""
        return self.latency + size / self.bandwidth

    def shared(self, ways: int) -> Link:
        """The link of one of several senders that use it at the same time and divide its bandwidth evenly."""
        return Link(self.latency, self.bandwidth / ways)


def reduce_scatter(link: Link, ranks: int, size: float) -> float:
    """Seconds until each of the ranks has the sum of its part of ``size`` bytes, by a ring: ``(r - 1) t(n / r)``."""
    return (ranks - 1) * link(size / ranks)


def all_gather(link: Link, ranks: int, size: float) -> float:
    """Seconds until all ranks have the ``size`` bytes of each rank, by a ring: ``(r - 1) t(n)``."""
    return (ranks - 1) * link(size)


def broadcast(link: Link, ranks: int, size: float) -> float:
    """Seconds until all ranks have the ``size`` bytes of the first, by a binomial tree: ``ceil(log2 r) t(n)``."""
    return _rounds(ranks) * link(size)


def all_reduce(link: Link, ranks: int, size: float, algorithm: Algorithm = "ring") -> float:
    """Seconds until all ranks have the sum of ``size`` bytes.

    ::

        ring      2 (r - 1) t(n / r)                      a reduce-scatter and an all-gather
        tree      2 ceil(log2 r) t(n)                     a reduction to one rank, and a broadcast
        halving   2 log2 r latency + 2 (r - 1) / r n / bandwidth,   by recursive halving and doubling

    With halving, ranks beyond a power of two first send all to a partner, and get the result from it: ``2 t(n)`` more.

    Args:
        link: The link between any two ranks.
        ranks: The number of ranks, >= 1.
        size: Bytes on each rank.
        algorithm: "ring", "tree" or "halving".
    """
    if ranks == 1:
        return 0.0
    if algorithm == "ring":
        return reduce_scatter(link, ranks, size) + all_gather(link, ranks, size / ranks)
    if algorithm == "tree":
        return 2 * _rounds(ranks) * link(size)
    paired = 1 << (ranks.bit_length() - 1)  # the largest power of two
    extra = 0.0 if paired == ranks else 2 * link(size)
    return 2 * _rounds(paired) * link.latency + 2 * (paired - 1) / paired * size / link.bandwidth + extra


def _rounds(ranks: int) -> int:
    """The smallest number of doublings that reaches all ranks."""
    return (ranks - 1).bit_length()


@dataclass(frozen=True)
class Place:
    """How the ranks of a group lie on hosts.

    Args:
        inside: Ranks of the group on each of its hosts, >= 1.
        hosts: Hosts of the group, >= 1.
        groups: Groups on each host that do the same at the same time, >= 1; they share its link to other hosts.
    """

    inside: int
    hosts: int
    groups: int = 1

    @property
    def ranks(self) -> int:
        """The number of ranks of the group."""
        return self.inside * self.hosts


@dataclass(frozen=True, kw_only=True)
class Network:
    """Hosts with several devices each.

    Between hosts, each device of a host takes part with messages of its own; all of them share the link of the host.

    Args:
        within: The link of each device to the others of its host. Several devices use theirs at once.
        between: The link of each host to other hosts, for all its devices together.
        host: Devices of a host, >= 1.
        algorithm: How an all-reduce runs between hosts, and within a host that is the only one.

    Raises:
        ArgumentError: An argument breaks its rule.
    """

    within: Link
    between: Link
    host: int = 1
    algorithm: Algorithm = "ring"

    def __post_init__(self) -> None:
        checks.integer("host", self.host, 1, "8 devices to a host are usual")
        checks.one_of("algorithm", self.algorithm, ALGORITHMS)

    def all_reduce(self, place: Place, size: float) -> float:
        """Seconds of an all-reduce of ``size`` bytes.

        On several hosts: a reduce-scatter inside each, an all-reduce of every part between them, an all-gather inside.
        """
        if place.hosts == 1:
            return all_reduce(self.within, place.inside, size, self.algorithm)
        part = size / place.inside
        inside = reduce_scatter(self.within, place.inside, size) + all_gather(self.within, place.inside, part)
        return inside + all_reduce(self._outward(place), place.hosts, part, self.algorithm)

    def all_gather(self, place: Place, size: float) -> float:
        """Seconds of an all-gather of ``size`` bytes from every rank: between hosts, and then inside each host."""
        outside = all_gather(self._outward(place), place.hosts, size)
        return outside + all_gather(self.within, place.inside, place.hosts * size)

    def broadcast(self, place: Place, size: float) -> float:
        """Seconds of a broadcast of ``size`` bytes: between hosts, and then inside each host."""
        outside = broadcast(self.between.shared(place.groups), place.hosts, size)
        return outside + broadcast(self.within, place.inside, size)

    def _outward(self, place: Place) -> Link:
        """The link to other hosts of one of the devices that share it."""
        return self.between.shared(place.inside * place.groups)


def flat(link: Link, algorithm: Algorithm = "ring") -> Network:
    """A network whose devices are all connected by equal links of their own."""
    return Network(within=link, between=link, host=1, algorithm=algorithm)


def all_reduce_bytes(ranks: int, size: float) -> float:
    """Bytes that a rank sends in an all-reduce, on average over the ranks: ``2 (r - 1) / r n``, by any algorithm."""
    return 2 * (ranks - 1) / ranks * size


def all_gather_bytes(ranks: int, size: float) -> float:
    """Bytes that a rank sends in an all-gather of ``size`` bytes from each: ``(r - 1) n``."""
    return (ranks - 1) * size


def broadcast_bytes(ranks: int, size: float) -> float:
    """Bytes that a rank sends in a broadcast, on average over the ranks: ``(r - 1) / r n``."""
    return (ranks - 1) / ranks * size
