"""Devices, links, time lines and sizes, from which the time of a step is computed."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from lowland.core import checks
from lowland.core.errors import ArgumentError
from lowland.planner.line import Line
from lowland.planner.links import Network, Place


@dataclass(frozen=True, kw_only=True)
class Setting:
    """A model on a mesh of devices. All numbers are plain: measured, from a data sheet, or assumed.

    Args:
        gradient: Seconds of forward and backward on one device, by the number of examples.
        forward: Seconds of forward alone on one device, by the number of examples.
        size: Bytes of a gradient of all parameters, >= 0.
        network: The links, and the devices of a host.
        probe: Groups of devices that divide the probes of an ask, >= 1.
        data: Devices of a group, which divide the batch, >= 1.
        batch: Examples of a step, > 0; give either this or ``per_device``.
        per_device: Examples of a step on each device of a group, > 0.
        inner: The dimension whose ranks are neighbors, so that they are on one host first: "probe" is the mesh
            ``data=…,probe=…``, "data" the mesh ``probe=…,data=…``.
        overlap: The fraction of a backward in which an exchange can hide, in [0, 1].
        bucket: Bytes of a message of an exchange that can hide, > 0. The last one is sent after backward.
        arithmetic: Seconds of the method's arithmetic on vectors in a step, >= 0.
        update: Seconds of the optimizer's step, >= 0.

    Raises:
        ArgumentError: An argument breaks its rule, or the mesh does not divide into hosts evenly.
    """

    gradient: Line
    forward: Line
    size: float
    network: Network
    probe: int = 1
    data: int = 1
    batch: float | None = None
    per_device: float | None = None
    inner: Literal["probe", "data"] = "probe"
    overlap: float = 0.0
    bucket: float = math.inf
    arithmetic: float = 0.0
    update: float = 0.0

    def __post_init__(self) -> None:
        checks.integer("probe", self.probe, 1, "1 divides no probes")
        checks.integer("data", self.data, 1, "1 divides no batch")
        if (self.batch is None) == (self.per_device is None):
            raise ArgumentError(
                f"batch or per_device must be given, and not both, but they are {self.batch!r} and "
                f"{self.per_device!r}; batch is of all devices of a group"
            )
        for name in ("batch", "per_device", "bucket"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise ArgumentError(f"{name} must be > 0, but is {value!r}; give examples, or bytes of a bucket")
        for name in ("size", "arithmetic", "update"):
            checks.at_least(name, getattr(self, name), 0, "0 leaves it out")
        checks.within("overlap", self.overlap, 0, 1, "0 hides nothing")
        checks.one_of("inner", self.inner, ("probe", "data"))
        self._place(self.probe, "probe")
        self._place(self.data, "data")

    @property
    def devices(self) -> int:
        """All devices."""
        return self.probe * self.data

    @property
    def examples(self) -> float:
        """Examples of a step, of all devices together."""
        return self.local * self.data

    @property
    def local(self) -> float:
        """Examples of a step on each device."""
        return self.per_device if self.per_device is not None else (self.batch or 0.0) / self.data

    @property
    def messages(self) -> int:
        """Messages of an exchange that can hide: ``ceil(size / bucket)``, at least 1."""
        return max(math.ceil(self.size / self.bucket), 1)

    @property
    def probes(self) -> Place:
        """Where the ranks lie that exchange the gradients of different probes."""
        return self._place(self.probe, "probe")

    @property
    def replicas(self) -> Place:
        """Where the ranks lie that average a gradient over the batch."""
        return self._place(self.data, "data")

    def _place(self, ranks: int, name: str) -> Place:
        """The place of the groups of one dimension of the mesh.

        Raises:
            ArgumentError: The groups do not have equally many ranks on each of their hosts.
        """
        host = min(self.network.host, self.devices)
        stride = 1 if name == self.inner else self.devices // ranks
        inside = max(min(host // stride, ranks), 1)
        even = self.devices % host == 0 and ranks % inside == 0 and (host % stride == 0 or stride % host == 0)
        if not even or (host > inside * stride and host % (inside * stride)):
            raise ArgumentError(
                f"hosts must divide the mesh evenly, but {name}={ranks} of {self.devices} devices on hosts of "
                f"{self.network.host} does not; choose numbers that divide each other"
            )
        return Place(inside, ranks // inside, host // inside)

    def pass_seconds(self, examples: float, *, backward: bool) -> float:
        """Seconds of a pass over a fraction of the local examples, with its backward or without."""
        return (self.gradient if backward else self.forward)(examples * self.local)

    def backward_seconds(self, examples: float) -> float:
        """Seconds of the backward of such a pass, >= 0: what its gradient takes longer than its forward."""
        return max(self.gradient(examples * self.local) - self.forward(examples * self.local), 0.0)
