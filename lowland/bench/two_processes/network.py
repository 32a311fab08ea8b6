"""A network for two processes on one machine: namespaces joined by a cable of limited bandwidth. Linux, as root."""

from __future__ import annotations

import os
import secrets
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager

from lowland.core import checks
from lowland.core.errors import UsageError

DEVICE = "cable"  # the name of its end in either namespace
ADDRESSES = ("10.211.55.1/30", "10.211.55.2/30")
BURST = 16 * 1024  # bytes of a burst; more than a few packets, but far less than a gradient
QUEUE = 400  # ms for which a packet may queue; long enough that no packet of a gradient is dropped


class Network:
    """Two network namespaces; see :func:`network`.

    Attributes:
        names: The names of the namespaces.
    """

    def __init__(self, names: tuple[str, str]) -> None:
        self.names = names

    @property
    def prefixes(self) -> list[list[str]]:
        """For each namespace, the command prefix that runs a command inside it."""
        return [["ip", "netns", "exec", name] for name in self.names]

    def limit(self, mbit: float, delay: float = 0.0) -> None:
        """Limit the bandwidth in both directions, and set the latency.

        Args:
            mbit: Bandwidth in Mbit/s, > 0.
            delay: The latency of a packet in milliseconds, >= 0; a value above 0 requires the kernel's netem.

        Raises:
            UsageError: The kernel has no such limit.
        """
        checks.at_least("mbit", mbit, 0.1, "choose a bandwidth in Mbit/s")
        checks.at_least("delay", delay, 0, "0 adds no delay")
        # The traffic of 0.25 ms, the resolution of the timer: a smaller burst would reduce the bandwidth.
        burst = max(BURST, round(mbit * 1e6 / 8 * 0.25e-3))
        bucket = ["tbf", "rate", f"{mbit}mbit", "burst", str(burst), "latency", f"{QUEUE}ms"]
        for name in self.names:
            tc = ["tc", "-n", name, "qdisc"]
            if delay:
                where = ["dev", DEVICE, "root", "handle", "1:"]
                _run([*tc, "replace", *where, "netem", "delay", f"{delay}ms", "limit", "100000"], "netem")
                _run([*tc, "replace", "dev", DEVICE, "parent", "1:1", "handle", "10:", *bucket], "tbf")
            else:
                _run([*tc, "replace", "dev", DEVICE, "root", *bucket], "tbf")


@contextmanager
def network() -> Iterator[Network]:
    """Make two namespaces joined by a cable, and remove them on exit, also after an error.

    Yields:
        The network, up and with unlimited bandwidth.

    Raises:
        UsageError: Something is missing; the message names it.
    """
    check()
    token = secrets.token_hex(4)
    names = (f"lowland-{token}-0", f"lowland-{token}-1")
    with ExitStack() as stack:
        for name in names:
            stack.callback(_remove, name)  # registered first, so that Ctrl-C in between leaves no namespace
            _run(["ip", "netns", "add", name], "network namespaces")
        ends = ["type", "veth", "peer", "name", DEVICE, "netns", names[1]]
        _run(["ip", "link", "add", DEVICE, "netns", names[0], *ends], "veth pairs")
        for name, address in zip(names, ADDRESSES, strict=True):
            _run(["ip", "-n", name, "address", "add", address, "dev", DEVICE], "addresses on veth devices")
            for device in ("lo", DEVICE):
                _run(["ip", "-n", name, "link", "set", device, "up"], "veth pairs")
        yield Network(names)


def rehearse(bandwidths: Sequence[float], delay: float = 0.0) -> None:
    """Make a network, set every limit, and remove the network: errors appear before the long measurement.

    Args:
        bandwidths: In Mbit/s.
        delay: Milliseconds.
    """
    with network() as joined:
        for mbit in bandwidths:
            joined.limit(mbit, delay)


def check() -> None:
    """Check the requirements of a limited network without making one.

    Raises:
        UsageError: A requirement is missing; the message names it.
    """
    if not sys.platform.startswith("linux"):
        raise UsageError(f"a limited network needs Linux's namespaces, but this is {sys.platform}; use Linux")
    if os.geteuid() != 0:
        raise UsageError(
            "a limited network needs root, because it makes network namespaces, but the user id is "
            f"{os.geteuid()}; run the command with sudo"
        )
    missing = [tool for tool in ("ip", "tc") if shutil.which(tool) is None]
    if missing:
        raise UsageError(
            f"a limited network needs the commands ip and tc, but {' and '.join(missing)} cannot be found; install "
            "iproute2: apt-get install iproute2"
        )


def _run(command: list[str], what: str) -> None:
    # A separate session protects the command from Ctrl-C, so that the state of the network stays known.
    completed = subprocess.run(command, capture_output=True, text=True, check=False, start_new_session=True)
    if completed.returncode != 0:
        reason = " ".join(completed.stderr.split()) or f"exit code {completed.returncode}"
        remedy = (
            "leave the delay out, or load it: modprobe sch_netem" if what == "netem" else "run it outside containers"
        )
        raise UsageError(f"the kernel must allow {what}, but `{' '.join(command)}` failed ({reason}); {remedy}")


def _remove(name: str) -> None:
    """Remove a namespace and its end of the cable, if the namespace exists."""
    subprocess.run(["ip", "netns", "delete", name], capture_output=True, check=False, start_new_session=True)
