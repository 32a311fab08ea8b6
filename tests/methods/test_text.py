"""Methods and their text: what one spells, the other makes, whatever the fields."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from lowland.core.errors import ArgumentError
from lowland.methods import GEOMETRIES, METHODS, key_of, make, spell
from lowland.methods.base import Wrapper
from lowland.methods.catalog import Method

ROOMY = {"rho": st.floats(0, 10), "geometry": st.sampled_from(sorted(GEOMETRIES)).map(lambda name: GEOMETRIES[name]())}
SIMPLE = sorted(key for key, kind in METHODS.items() if not issubclass(kind, Wrapper))


def value(default: Any) -> st.SearchStrategy[Any]:
    """Values of a field's kind; those that break its rule are thrown away."""
    if isinstance(default, bool):
        return st.booleans()
    if isinstance(default, int):
        return st.integers(0, 200)
    if isinstance(default, float):
        return st.floats(-2, 2, allow_nan=False)
    return st.just(default)


@st.composite
def methods(draw: st.DrawFn, depth: int = 2) -> Method:
    key = draw(st.sampled_from(SIMPLE if depth == 0 else sorted(METHODS)))
    kind = METHODS[key]
    given_fields = [f for f in fields(kind) if f.init and f.name != "inner"]
    chosen = draw(st.lists(st.sampled_from(given_fields), unique=True)) if given_fields else []
    values = {f.name: draw(ROOMY[f.name] if f.name in ROOMY else value(f.default)) for f in chosen}
    if issubclass(kind, Wrapper):
        values["inner"] = draw(methods(depth - 1))  # type: ignore[call-arg]
    try:
        return kind(**values)
    except ArgumentError:
        return draw(methods(0))  # type: ignore[call-arg]


@given(methods())  # type: ignore[call-arg]
def test_a_method_s_text_makes_it_again(method: Method) -> None:
    text = spell(method)
    assert make(text) == method
    assert spell(make(text)) == text
    assert text.partition(":")[0] == key_of(method)
