from __future__ import annotations

import pytest

from lowland.core.errors import ArgumentError, UnknownNameError
from lowland.planner.hardware import LINKS, link


def test_bandwidths_are_those_of_the_documents() -> None:
    gigabytes = {name: round(found.bandwidth / 1e9, 2) for name, found in LINKS.items()}
    assert gigabytes == {
        "ethernet10": 1.25, "ethernet100": 12.5, "hdr": 25, "ndr": 50, "pcie4": 31.51, "pcie5": 63.02, "nvlink3": 300,
        "nvlink4": 450,
    }  # fmt: skip
    assert all(found.source for found in LINKS.values())


def test_links_by_name_and_by_number() -> None:
    assert (link("hdr", 1e-6).latency, link("hdr", 1e-6).bandwidth) == (1e-6, 25e9)
    assert link("hdr", 0.0, lanes=4).bandwidth == 100e9
    assert link("1.5", 0.0, lanes=2).bandwidth == 3e9


def test_refusals() -> None:
    with pytest.raises(UnknownNameError, match=r"unknown link 'nvlink-4': did you mean 'nvlink4'\?"):
        link("nvlink-4", 0.0)
    for text in ("0", "-1", "nan"):
        with pytest.raises(ArgumentError, match=f"a link must have a bandwidth > 0, but has {text}"):
            link(text, 0.0)
