"""What `lowland` offers, pinned; and that all of it explains itself."""

from __future__ import annotations

import dataclasses
import inspect
import re
from collections.abc import Iterator
from importlib import metadata
from typing import Any

import pytest

import lowland
from lowland.methods import METHODS

EXPORTED = [
    "AESAM",
    "ARSAM",
    "ASAM",
    "AUSAM",
    "ESAM",
    "GSAM",
    "KSAM",
    "L2",
    "LESAM",
    "METHODS",
    "RST",
    "SAM",
    "SAMON",
    "SLSAM",
    "VSAM",
    "WSAM",
    "XSAM",
    "AdaSAM",
    "Adaptive",
    "AsyncSAM",
    "Batched",
    "BiSAM",
    "ClosureOptimizer",
    "Cost",
    "Counted",
    "Criterion",
    "Cutter",
    "Engine",
    "Executor",
    "FriendlySAM",
    "FunctionalSAM",
    "Geometry",
    "Late",
    "Layerwise",
    "Local",
    "LogitsSAM",
    "LookSAM",
    "Loss",
    "LowlandError",
    "Mesh",
    "Method",
    "MicroSAM",
    "MomentumSAM",
    "Parts",
    "Plain",
    "Plan",
    "Preconditioned",
    "Probe",
    "Reading",
    "Renormalized",
    "SAMPa",
    "Slices",
    "Spectral",
    "StableSAM",
    "Switch",
    "UnifiedSAM",
    "VaSSO",
    "checks",
    "displaced",
    "refresh_stats",
    "schedule",
    "vec",
]
KEYS = [
    *("plain", "sam", "sampa", "looksam", "micro-sam", "vsam", "arsam", "ausam", "sl-sam", "k-sam", "esam"),
    *("friendly-sam", "stable-sam", "adasam", "asam", "sam-on", "gsam", "wsam", "momentum-sam", "bisam"),
    *("functional-sam", "le-sam", "ae-sam", "rst", "async-sam", "late", "unified-sam", "vasso", "xsam", "logits-sam"),
]
SECTIONS = ["Args:", "Cost:", "Differs:", "Invariants:", "Use:", "Avoid:", "Reference:"]


def documented() -> Iterator[tuple[str, Any]]:
    """Exported classes and functions, and the public methods and properties the classes define."""
    for name in lowland.__all__:
        value = getattr(lowland, name)
        if not (inspect.isclass(value) or inspect.isfunction(value)):
            continue
        yield name, value
        for attribute, member in vars(value).items():
            if not attribute.startswith("_") and (inspect.isfunction(member) or isinstance(member, property)):
                yield f"{name}.{attribute}", member


def sections(kind: type) -> dict[str, str]:
    """The parts of a method's docstring by heading, in order."""
    text = inspect.cleandoc(kind.__doc__ or "")
    parts = re.split(r"^(\w+:)(?=$| )", text, flags=re.MULTILINE)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


def test_exported_names() -> None:
    assert sorted(lowland.__all__) == sorted(EXPORTED)
    assert all(hasattr(lowland, name) for name in EXPORTED)


def test_the_registry() -> None:
    assert list(METHODS) == KEYS
    assert {kind.__name__ for kind in METHODS.values()} <= set(EXPORTED)


def test_the_version_is_the_installed_one() -> None:
    assert lowland.__version__ == metadata.version("lowland")


def test_public_things_have_docstrings() -> None:
    for name, value in documented():
        assert value.__doc__, f"{name} needs a docstring"
        # A dataclass without one gets its signature as docstring.
        assert not value.__doc__.startswith(f"{name}("), f"{name} needs a docstring of its own"


@pytest.mark.parametrize("key", METHODS)
def test_method_docstrings_have_their_sections(key: str) -> None:
    found = [name for name in sections(METHODS[key]) if name in SECTIONS]
    # The plain gradient is nobody's reading of a paper: there is nothing to differ from.
    assert found == [s for s in SECTIONS if s != "Differs:" or key != "plain"], "these sections, in this order"


@pytest.mark.parametrize("key", METHODS)
def test_method_docstrings_name_their_fields(key: str) -> None:
    kind = METHODS[key]
    told = re.findall(r"^\s+(\w+):", sections(kind)["Args:"], flags=re.MULTILINE)
    fields = [field.name for field in dataclasses.fields(kind) if field.init]
    parent = kind.__bases__[0]
    if parent.__bases__[0] is lowland.Method and parent in METHODS.values():  # a preset: a pointer to other fields
        assert f":class:`{parent.__name__}`" in sections(kind)["Args:"]
        assert set(told) <= set(fields)
    else:
        assert told == fields


@pytest.mark.parametrize("key", METHODS)
def test_method_docstrings_tell_the_cost_in_gradients_memory_and_communication(key: str) -> None:
    cost = sections(METHODS[key])["Cost:"]
    assert "gradient" in cost
    assert "memory" in cost
    assert "all-reduce" in cost or "exchange" in cost or "communication" in cost
