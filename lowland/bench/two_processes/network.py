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
BURST = 16 * 1024  # bytes that may leave at once; more than a few packets, and little next to a gradient
QUEUE = 400  # ms for which a packet may queue before it is dropped: long enough that a gradient loses none


class Network:
    """Two network namespaces; see :func:`network`.

    Attributes:
        names: Of the namespaces.
    """

    def __init__(self, names: tuple[str, str]) -> None:
        self.names = names

    @property
    def prefixes(self) -> list[list[str]]:
        """What runs a command inside each namespace, put before it."""
        return [["ip", "netns", "exec", name] for name in self.names]

    def limit(self, mbit: float, delay: float = 0.0) -> None:
        """Let no more than this pass, in either direction, from now on.

        Args:
            mbit: Bandwidth in Mbit/s, > 0.
            delay: Milliseconds that a packet is under way, >= 0; needs the kernel's netem where it is > 0.

        Raises:
            UsageError: The kernel has no such limit.
        """
        checks.at_least("mbit", mbit, 0.1, "choose a bandwidth in Mbit/s")
        checks.at_least("delay", delay, 0, "0 adds no delay")
        # A quarter of a millisecond's traffic: a timer does not fire more often, so less would be slower than asked.
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
    """Make two namespaces and a cable; whatever happens, none is left.

    Yields:
        The namespaces, their ends of the cable up, its bandwidth not limited yet.

    Raises:
        UsageError: Something is missing; the message names it.
    """
    check()
    token = secrets.token_hex(4)
    names = (f"lowland-{token}-0", f"lowland-{token}-1")
    with ExitStack() as stack:
        for name in names:
            stack.callback(_remove, name)  # before it is made, so that no Ctrl-C falls between
            _run(["ip", "netns", "add", name], "network namespaces")
        ends = ["type", "veth", "peer", "name", DEVICE, "netns", names[1]]
        _run(["ip", "link", "add", DEVICE, "netns", names[0], *ends], "veth pairs")
        for name, address in zip(names, ADDRESSES, strict=True):
            _run(["ip", "-n", name, "address", "add", address, "dev", DEVICE], "addresses on veth devices")
            for device in ("lo", DEVICE):
                _run(["ip", "-n", name, "link", "set", device, "up"], "veth pairs")
        yield Network(names)


def rehearse(bandwidths: Sequence[float], delay: float = 0.0) -> None:
    """Make such a network, set every limit, and remove it again: what cannot be done shows before the long part.

    Args:
        bandwidths: In Mbit/s.
        delay: Milliseconds.
    """
    with network() as joined:
        for mbit in bandwidths:
            joined.limit(mbit, delay)


def check() -> None:
    """Whether this machine can have such a network, as far as can be told without making one.

    Raises:
        UsageError: It cannot; the message names what is missing.
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
    # In a session of its own: Ctrl-C must not cut it short, or it would be unclear what is there to remove.
    ran = subprocess.run(command, capture_output=True, text=True, check=False, start_new_session=True)
    if ran.returncode != 0:
        told = " ".join(ran.stderr.split()) or f"exit code {ran.returncode}"
        remedy = (
            "leave the delay out, or load it: modprobe sch_netem" if what == "netem" else "run it outside containers"
        )
        raise UsageError(f"the kernel must allow {what}, but `{' '.join(command)}` failed ({told}); {remedy}")


def _remove(name: str) -> None:
    """Remove a namespace, and with it its end of the cable, if it is there."""
    subprocess.run(["ip", "netns", "delete", name], capture_output=True, check=False, start_new_session=True)
