"""Methods as text: ``sam:rho=0.1``, and back."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

from lowland.core.errors import ArgumentError, UnknownNameError
from lowland.core.geometry import Geometry
from lowland.core.outside import fields_of, split, text_of, value_of
from lowland.methods.base import Method
from lowland.methods.catalog import GEOMETRIES, METHODS
from lowland.methods.outside import OUTSIDE


def key_of(method: Method) -> str:
    """The name of a method's class: its key in METHODS or, for one that was not loaded by name, ``module:Name``.

    Example:
        >>> from lowland import SAMPa
        >>> key_of(SAMPa(lam=0.0))
        'sampa'
    """
    for key, kind in METHODS.items():
        if type(method) is kind:
            return key
    return f"{type(method).__module__}:{type(method).__qualname__}"


def kind_of(name: str) -> type[Method]:
    """The class of a method's name; one that is not lowland's own is loaded, and is in METHODS from then on.

    Args:
        name: A key of METHODS, ``path/to/file.py:Name``, ``package.module:Name``, or an entry point's name.

    Raises:
        UnknownNameError: No such method; the nearest name is suggested.
        ArgumentError: A file or module that cannot be imported, or a name in it that is no method.
    """
    if name not in METHODS:
        kind = OUTSIDE.load(name)
        if kind is None and "," in name and "=" not in name:
            raise ArgumentError(
                f"methods must be named one by one, but {name!r} has a comma; write {' '.join(name.split(','))}, or "
                "fields after a colon, as in sam:rho=0.1"
            )
        if kind is None:
            raise UnknownNameError("method", name, [*METHODS, *OUTSIDE.installed()])
        METHODS[name] = kind
    return METHODS[name]


def make(text: str, *, fill: Callable[[str], Mapping[str, Any]] | None = None, **defaults: Any) -> Method:
    """Make a method from ``key`` or ``key:field=value,field=value``.

    In the text of a method around another one, ``inner=`` is the last field and takes the rest of the text. An external
    method is named by file and class, ``vasso.py:VaSSO:theta=0.4``; see :func:`kind_of`.

    Args:
        text: For example ``"sampa:rho=0.1,lam=0.2"``, ``"looksam:geometry=layerwise"`` or
            ``"late:start=0.5,inner=looksam:k=5,alpha=0.2"``.
        fill: A function from a method's key to values of fields that the text omits; also called for inner methods.
        defaults: Values of fields that the text omits, for the outermost method only.

    Raises:
        UnknownNameError: No such method, field or geometry; the nearest name is suggested.
        ArgumentError: The text is malformed or a value breaks its rule.

    Example:
        >>> make("sampa:lam=0").lam
        0
        >>> make("stable-sam:inner=sam:rho=0.1").inner.rho
        0.1
    """
    if not isinstance(text, str):
        raise ArgumentError(f'text must be a string such as "sam:rho=0.05", but is {text!r}; a method is used as it is')
    key, rest = split(text, METHODS)
    kind = kind_of(key)
    known, parts = _given(kind), fields_of(rest)
    given: dict[str, Any] = {**(fill(key) if fill is not None else {}), **defaults}
    if "inner" in known:
        if fill is not None:  # the default inside a method is filled, too
            inside: Any = known["inner"].default
            given.setdefault("inner", make(key_of(inside), fill=fill))
        first = next((i for i, part in enumerate(parts) if part.startswith("inner=")), len(parts))
        parts, rest = parts[:first], ",".join(parts[first:])
        inner = rest.removeprefix("inner=")
        if rest:
            try:
                given["inner"] = make(inner, fill=fill)
            except UnknownNameError as error:
                if any(f"{name}=" in inner for name in known if name != "inner"):
                    raise ArgumentError(f"{error}; inner= takes the rest of the text, so write it last") from None
                raise
    for part in parts:
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
        ArgumentError: A field is a schedule, a function, or a geometry with changed fields, which text cannot express.

    Example:
        >>> from lowland import SAM, Late, LookSAM, SAMPa
        >>> spell(SAMPa(rho=0.2)), spell(SAM()), spell(Late(start=9, inner=LookSAM(k=2)))
        ('sampa:rho=0.2', 'sam', 'late:start=9,inner=looksam:k=2')
    """
    names = {kind(): name for name, kind in GEOMETRIES.items()}
    parts = []
    for field in sorted(_given(type(method)).values(), key=lambda f: f.name == "inner"):
        value = getattr(method, field.name)
        if value != field.default:
            text = names.get(value, value) if field.name == "geometry" else value
            text = spell(value) if isinstance(value, Method) else text
            if not isinstance(value, Method | Geometry):
                text = text_of(value)
                if value_of(text) != value:
                    raise ArgumentError(
                        f"{field.name} must be a number, a name or a tuple of them to be spelled, but is {value!r}; "
                        "use repr"
                    )
            elif not isinstance(text, str):
                raise ArgumentError(f"{field.name} must be a geometry without fields to be spelled, but is {value!r}")
            parts.append(f"{field.name}={text}")
    return ":".join(filter(None, [key_of(method), ",".join(parts)]))


def _given(kind: type[Method]) -> dict[str, dataclasses.Field[Any]]:
    """The fields that a caller may give, by name."""
    return {field.name: field for field in dataclasses.fields(kind) if field.init}


def _value(name: str, text: str) -> Any:
    if name == "geometry":
        if text not in GEOMETRIES:
            raise UnknownNameError("geometry", text, GEOMETRIES)
        return GEOMETRIES[text]()
    return value_of(text)
