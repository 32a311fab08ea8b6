"""All methods: one paper, one file. ``METHODS`` is the only registry."""

from __future__ import annotations

import ast
import dataclasses
from typing import Any

from lowland.errors import ArgumentError, UnknownNameError
from lowland.geometry import L2, Adaptive, Geometry, Layerwise
from lowland.method import Method
from lowland.methods.looksam import LookSAM
from lowland.methods.micro_sam import MicroSAM
from lowland.methods.plain import Plain
from lowland.methods.sam import SAM
from lowland.methods.sampa import SAMPa
from lowland.methods.vsam import ARSAM, VSAM

METHODS: dict[str, type[Method]] = {
    "plain": Plain,
    "sam": SAM,
    "sampa": SAMPa,
    "looksam": LookSAM,
    "micro-sam": MicroSAM,
    "vsam": VSAM,
    "arsam": ARSAM,
}

GEOMETRIES: dict[str, type[Geometry]] = {"l2": L2, "adaptive": Adaptive, "layerwise": Layerwise}


def key_of(method: Method) -> str:
    """The registry key of a method's class.

    Example:
        >>> key_of(SAMPa(lam=0.0))
        'sampa'
    """
    for key, kind in METHODS.items():
        if type(method) is kind:
            return key
    raise ArgumentError(
        f"method must be one of METHODS, but is {type(method).__name__}; add your class to METHODS under a key"
    )


def make(text: str, **defaults: Any) -> Method:
    """A method from ``key`` or ``key:field=value,field=value``.

    Args:
        text: For example ``"sampa:rho=0.1,lam=0.2"`` or ``"looksam:geometry=layerwise"``.
        defaults: Values for fields that the text leaves open.

    Raises:
        UnknownNameError: No such method, field or geometry; the nearest name is suggested.
        ArgumentError: The text is malformed or a value breaks its rule.

    Example:
        >>> make("sampa:lam=0").lam
        0
    """
    key, _, rest = text.partition(":")
    if key not in METHODS:
        raise UnknownNameError("method", key, METHODS)
    kind = METHODS[key]
    known = [f.name for f in dataclasses.fields(kind)]
    given: dict[str, Any] = dict(defaults)
    for part in filter(None, rest.split(",")):
        name, equals, value = part.partition("=")
        if not equals:
            raise ArgumentError(f"method fields must be written name=value, but one is {part!r} in {text!r}")
        given[name] = _value(name, value)
    for name in given:
        if name not in known:
            raise UnknownNameError(f"field of {key}", name, known)
    return kind(**given)


def spell(method: Method) -> str:
    """The text that :func:`make` turns into this method, naming only fields that differ from the defaults.

    Raises:
        ArgumentError: A field is a schedule, or a geometry with fields of its own, which the text cannot say.

    Example:
        >>> spell(SAMPa(rho=0.2)), spell(SAM())
        ('sampa:rho=0.2', 'sam')
    """
    names = {kind(): name for name, kind in GEOMETRIES.items()}
    parts = []
    for field in dataclasses.fields(method):
        value = getattr(method, field.name)
        if value != field.default:
            text = names.get(value, value) if field.name == "geometry" else value
            if not isinstance(text, str | int | float):
                raise ArgumentError(
                    f"{field.name} must be a number or a name to be spelled, but is {value!r}; use repr"
                )
            parts.append(f"{field.name}={text}")
    return ":".join(filter(None, [key_of(method), ",".join(parts)]))


def _value(name: str, text: str) -> Any:
    if name == "geometry":
        if text not in GEOMETRIES:
            raise UnknownNameError("geometry", text, GEOMETRIES)
        return GEOMETRIES[text]()
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text
