"""Methods that are not lowland's own: by file, by package, by entry point."""

from __future__ import annotations

from collections.abc import Iterator
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest

from lowland import SAM
from lowland.core import outside as core
from lowland.core.errors import ArgumentError, UnknownNameError
from lowland.methods import METHODS, key_of, make, outside, spell

USAM = '''
from dataclasses import dataclass

import lowland
from lowland.core import vec


@dataclass(frozen=True, kw_only=True)
class USAM(lowland.Method):
    """SAM without the norm."""

    theta: float = 1.0

    def plan(self, engine, batch):
        here = yield lowland.Probe(batch)
        there = yield lowland.Probe(batch, at=vec.scale(here.grad, self.rho * self.theta))
        return here.loss, there.grad
'''


@pytest.fixture
def file(tmp_path: Path) -> Iterator[Path]:
    """A file with a method; what a test loads is forgotten afterwards."""
    before = set(METHODS)
    path = tmp_path / "mine.v2" / "usam.py"
    path.parent.mkdir()
    path.write_text(USAM, encoding="utf-8")
    yield path
    for name in set(METHODS) - before:
        del METHODS[name]


@pytest.mark.parametrize(
    ("text", "name", "fields"),
    [
        ("sam", "sam", ""),
        ("sam:rho=0.1", "sam", "rho=0.1"),
        ("sam:oops", "sam", "oops"),
        ("v.py:V", "v.py:V", ""),
        ("a/v.py:V:rho=0.1,theta=2", "a/v.py:V", "rho=0.1,theta=2"),
        ("a.b:V:rho=0.1", "a.b:V", "rho=0.1"),
        ("C:/x=1/v.py:V:rho=0.1", "C:/x=1/v.py:V", "rho=0.1"),
        ("sampaa:rho=0.1", "sampaa", "rho=0.1"),
    ],
)
def test_the_name_ends_at_the_colon_before_the_first_field(text: str, name: str, fields: str) -> None:
    assert core.split(text, METHODS) == (name, fields)


def test_a_method_from_a_file(file: Path) -> None:
    method = make(f"{file}:USAM:theta=0.4,rho=0.1")
    assert (type(method).__name__, method.theta, method.rho) == ("USAM", 0.4, 0.1)
    assert method == make(f"{file.parent}/../mine.v2/usam.py:USAM:rho=0.1,theta=0.4")  # one file, one class
    assert make(spell(method)) == method
    assert key_of(method) == f"{file}:USAM"
    inner = make(f"late:start=3,inner={file}:USAM:theta=0.4").inner
    assert inner == make(f"{file}:USAM:theta=0.4")


def test_a_method_from_a_module(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(file.parent)
    assert type(make("usam:USAM:theta=2")).__module__ == "usam"
    assert make("lowland.methods.sam:SAM:rho=0.2") == SAM(rho=0.2)


def test_a_method_from_an_entry_point(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(file.parent)
    points = [
        EntryPoint("my-sam", "usam:USAM", outside.OUTSIDE.group),
        EntryPoint("gone", "no_such_module:X", outside.OUTSIDE.group),
    ]
    monkeypatch.setattr(core, "entry_points", lambda group: [p for p in points if p.group == group])
    assert make("my-sam:theta=2").theta == 2
    assert outside.OUTSIDE.installed() == ["gone", "my-sam"]
    with pytest.raises(ArgumentError, match="'gone' cannot be: ModuleNotFoundError"):
        make("gone")
    with pytest.raises(UnknownNameError, match="did you mean 'my-sam'"):
        make("my-sm")


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("{file}", r"must be named with its class, but is .*; there: .*usam\.py:USAM$"),
        ("{file}:VSAM", r"must name a class made from lowland\.Method with a plan, but is not there; there: USAM"),
        ("{file}:vec", r"must name a class made from lowland\.Method with a plan, but is <module"),
        ("{file}x.py:USAM", r"must be in a file that is there, but .*usam\.pyx\.py is not"),
        ("no_such_package.inside:V", r"there is no module 'no_such_package\.inside'"),
        ("lowland.methods.base:Method", r"but is <class 'lowland\.methods\.base\.Method'>"),
        ("sam,plain", r"must be named one by one, but 'sam,plain' has a comma; write sam plain"),
    ],
)
def test_what_is_no_method_is_refused(file: Path, name: str, said: str) -> None:
    with pytest.raises(ArgumentError, match=said):
        make(name.format(file=file))


@pytest.mark.parametrize("code", ["import no_such_package", "1 / 0", "def"])
def test_a_file_that_cannot_be_imported_is_refused_each_time(file: Path, code: str) -> None:
    file.write_text(code, encoding="utf-8")
    for _ in range(2):
        with pytest.raises(ArgumentError, match=r"'.*usam\.py:USAM' cannot be: (Module|Zero|Syntax)"):
            make(f"{file}:USAM")


@pytest.mark.parametrize(
    "fields",
    [{"sizes": (4, 5)}, {"sizes": ()}, {"note": "a, b"}, {"note": "3"}, {"note": "inner=sam"}, {"sizes": None}],
    ids=repr,
)
def test_fields_that_are_tuples_or_any_text_come_back(file: Path, fields: dict[str, object]) -> None:
    line = '    sizes: tuple[int, ...] | None = (1,)\n    note: str = ""\n'
    file.write_text(USAM.replace("    theta: float = 1.0\n", line), encoding="utf-8")
    kind = type(make(f"{file}:USAM"))
    method = kind(**fields)
    assert make(spell(method)) == method
    around = make("late:start=0.5,inner=" + spell(method))
    assert make(spell(around)) == around


def test_a_field_that_no_text_can_say_is_refused(file: Path) -> None:
    file.write_text(USAM.replace("theta: float = 1.0", "theta: object = 1.0"), encoding="utf-8")
    kind = type(make(f"{file}:USAM"))
    with pytest.raises(ArgumentError, match=r"theta must be a number, a name or a tuple of them to be spelled, but is"):
        spell(kind(theta=object()))
