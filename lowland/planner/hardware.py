"""Public figures of links, each with the document that has it."""

from __future__ import annotations

from typing import NamedTuple

from lowland.core.errors import ArgumentError, UnknownNameError
from lowland.planner.links import Link


class PublicLink(NamedTuple):
    """The bandwidth of a link in one direction, which no program reaches quite.

    Args:
        bandwidth: Bytes per second.
        title: The name in figures.
        source: The document, and what it says.
    """

    bandwidth: float
    title: str
    source: str


LINKS = {
    "ethernet10": PublicLink(1.25e9, "Ethernet 10G", "IEEE 802.3: 10 Gbit/s"),
    "ethernet100": PublicLink(12.5e9, "Ethernet 100G", "IEEE 802.3: 100 Gbit/s"),
    "hdr": PublicLink(25e9, "InfiniBand HDR", "InfiniBand Trade Association: HDR, 4 lanes, 200 Gbit/s"),
    "ndr": PublicLink(50e9, "InfiniBand NDR", "InfiniBand Trade Association: NDR, 4 lanes, 400 Gbit/s"),
    "pcie4": PublicLink(16e9 * 16 * 128 / 130 / 8, "PCIe 4.0 x16", "PCI Express 4.0: 16 lanes, 16 GT/s, 128b/130b"),
    "pcie5": PublicLink(32e9 * 16 * 128 / 130 / 8, "PCIe 5.0 x16", "PCI Express 5.0: 16 lanes, 32 GT/s, 128b/130b"),
    "nvlink3": PublicLink(300e9, "NVLink 3", "NVIDIA A100 data sheet: 600 GB/s, half of it in each direction"),
    "nvlink4": PublicLink(450e9, "NVLink 4", "NVIDIA H100 SXM data sheet: 900 GB/s, half of it in each direction"),
}


def link(text: str, latency: float, lanes: int = 1) -> Link:
    """A link by name, or by its bandwidth in GB/s.

    Args:
        text: A name in ``LINKS``, or a number.
        latency: Seconds; documents do not have it.
        lanes: The number of such links side by side, >= 1.

    Raises:
        UnknownNameError: There is no link of this name.
        ArgumentError: The bandwidth is not above 0.

    Example:
        >>> link("ndr", 2e-5, lanes=8).bandwidth, link("3.5", 2e-5).bandwidth
        (400000000000.0, 3500000000.0)
    """
    if text in LINKS:
        return Link(latency, LINKS[text].bandwidth * lanes)
    try:
        bandwidth = float(text) * 1e9
    except ValueError:
        raise UnknownNameError("link", text, LINKS) from None
    if not bandwidth > 0:
        raise ArgumentError(f"a link must have a bandwidth > 0, but has {text}; give GB/s, such as 12.5")
    return Link(latency, bandwidth * lanes)
