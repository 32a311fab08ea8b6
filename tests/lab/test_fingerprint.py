"""Fingerprints of code: equal for the same code and values, different for all others, the same in another process."""

from __future__ import annotations

import argparse
import functools
import importlib
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from lowland.core.errors import ArgumentError
from lowland.lab import fingerprint
from lowland.lab.names import OUTSIDE_MODEL
from lowland.methods import METHODS, make
from lowland.methods.outside import OUTSIDE

METHOD = '''
from dataclasses import dataclass

import lowland


@dataclass(frozen=True, kw_only=True)
class USAM(lowland.Method):
    """SAM without the norm."""

    def plan(self, engine, batch):
        here = yield lowland.Probe(batch)
        there = yield lowland.Probe(batch, at=[g * self.rho for g in here.grad])
        return here.loss, there.grad
'''


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder to import from; its modules and methods are forgotten afterwards."""
    before, methods = set(sys.modules), set(METHODS)
    monkeypatch.syspath_prepend(str(tmp_path))
    yield tmp_path
    for name in set(METHODS) - methods:
        del METHODS[name]
    for name in set(sys.modules) - before:
        if str(tmp_path) in str(getattr(sys.modules[name], "__file__", "")):
            del sys.modules[name]


def load(folder: Path, **sources: str) -> ModuleType:
    """Write modules by their names and import the first of them anew."""
    for name, source in sources.items():
        path = folder.joinpath(*name.split(".")).with_suffix(".py")
        path.parent.mkdir(exist_ok=True)
        path.write_text(source, encoding="utf-8")
    for name in list(sys.modules):
        if str(folder) in str(getattr(sys.modules[name], "__file__", "")):
            del sys.modules[name]
    importlib.invalidate_caches()
    return importlib.import_module(next(iter(sources)))


def of(value: Any) -> str | None:
    return fingerprint.of(value, "model")


NET = "from torch import nn\nclass Net(nn.Linear):\n    pass\n"


@pytest.mark.parametrize(
    ("main", "names", "other"),
    [
        ("from beside import Net\ndef make():\n    return Net(1, 1)\n", ["beside"], NET),
        ("def make():\n    import beside\n    return beside.Net(1, 1)\n", ["beside"], NET),
        ("from package.inner import Net\ndef make():\n    return Net(1, 1)\n", ["package.inner"], NET),
        ("from package.inner import Net\nclass make(Net):\n    pass\n", ["package.inner"], NET),
        (
            "from middle import Net\ndef make():\n    return Net(1, 1)\n",
            ["beside", "middle"],
            "from beside import Net\n" + NET,
        ),
    ],
    ids=["from", "inside a function", "package", "base class", "through another"],
)
def test_files_that_are_imported_count(folder: Path, main: str, names: list[str], other: str) -> None:
    sources = {"main": main} | dict.fromkeys(names, other)
    sources[names[0]] = NET
    if "package" in names[0]:
        sources["package.__init__"] = ""
    first = of(load(folder, **sources).make)
    assert of(load(folder, **sources).make) == first
    changed = sources | {names[0]: NET.replace("pass", "eps = 1")}
    assert of(load(folder, **changed).make) != first
    assert of(load(folder, **sources, unused="x = 1\n").make) == first


def test_relative_imports_and_the_package_count(folder: Path) -> None:
    sources = {"pack.main": "from . import nets\nfrom .nets import Net\ndef make():\n    return Net()\n"}
    sources |= {"pack.__init__": "", "pack.nets": NET}
    first = of(load(folder, **sources).make)
    assert of(load(folder, **sources | {"pack.nets": NET + "x = 1\n"}).make) != first
    assert of(load(folder, **sources | {"pack.__init__": "x = 1\n"}).make) != first


def test_a_reload_is_new_code_and_an_edit_alone_is_not(folder: Path) -> None:
    main = load(folder, main="from beside import Net\ndef make():\n    return Net()\n", beside=NET)
    first = of(main.make)
    (folder / "beside.py").write_text(NET + "more = 1\n", encoding="utf-8")
    assert of(main.make) == first  # what runs is the code from before
    importlib.reload(sys.modules["beside"])
    assert of(main.make) != first


GLOBAL = """
import argparse
from types import SimpleNamespace
from torch import nn
rate, args, config, count = {rate}, argparse.Namespace(rate={rate}, out={out!r}), dict(rate={rate}), 0
def direct():
    return nn.Dropout(rate)
def attribute():
    return nn.Dropout(args.rate)
def entry():
    return nn.Dropout(config["rate"])
def through():
    return direct()
def inner():
    return [nn.Dropout(rate) for _ in range(2)]
class method(nn.Module):
    def __init__(self):
        super().__init__()
        self.drop = nn.Dropout(rate)
class inherited(method):
    pass
def counting():
    global count
    count += 1
    return nn.Linear(1, 1)
"""


@pytest.mark.parametrize("name", ["direct", "attribute", "entry", "through", "inner", "method", "inherited"])
def test_values_of_global_variables_count(folder: Path, name: str) -> None:
    """The same file, whose variables come from the command line, say."""
    main = load(folder, main=GLOBAL.format(rate=0.1, out="a"))
    first = of(getattr(main, name))
    main.rate, main.args.rate, main.config["rate"] = 0.5, 0.5, 0.5
    assert of(getattr(main, name)) != first
    main.rate, main.args.rate, main.config["rate"] = 0.1, 0.1, 0.1
    assert of(getattr(main, name)) == first


def test_what_code_does_not_read_does_not_count(folder: Path) -> None:
    main = load(folder, main=GLOBAL.format(rate=0.1, out="a"))
    names = ("direct", "attribute", "counting")
    first = [of(getattr(main, name)) for name in names]
    main.args.out = "b"  # another folder
    main.counting()
    assert [of(getattr(main, name)) for name in names] == first


def _closure(value: Any) -> Callable[[], Any]:
    return lambda: value


def _default(value: Any) -> Callable[[], Any]:
    return lambda value=value: value


class Maker:
    """A maker of models with attributes."""

    def __init__(self, value: Any) -> None:
        self.value = [value]

    def __call__(self) -> Any:
        return self.value

    def method(self) -> Any:
        return self.value


@dataclass(frozen=True)
class Fields:
    """Fields that hold more than numbers."""

    value: Any


def _filled(number: float) -> nn.Module:
    net = nn.Linear(40, 40)
    nn.init.constant_(net.weight, 0.0)
    nn.init.constant_(net.bias, 0.0)
    net.weight.data[20, 20] = number  # where the text of a tensor has an ellipsis
    return net


HELD: dict[str, Callable[[float], Any]] = {
    "closure": _closure,
    "default": _default,
    "partial": lambda x: functools.partial(nn.Dropout, x),
    "partial with names": lambda x: functools.partial(nn.Dropout, p=x),
    "partial of a closure": lambda x: functools.partial(_closure(x)),
    "object": Maker,
    "method of an object": lambda x: Maker(x).method,
    "closure of a closure": lambda x: _closure(_closure(x)),
    "closure of a partial": lambda x: _closure(functools.partial(nn.Dropout, x)),
    "closure of an object": lambda x: _closure(Maker(x)),
    "closure of a tensor": lambda x: _closure(_filled(x).weight),
    "closure of an array": lambda x: _closure(_filled(x).weight.detach().numpy()),
    "closure of a module": lambda x: _closure(_filled(x)),
    "closure of a namespace": lambda x: _closure(argparse.Namespace(rate=x)),
    "field with a tensor": lambda x: Fields(_filled(x).weight),
    "field with a dataset": lambda x: Fields(torch.utils.data.TensorDataset(_filled(x).weight.detach())),
    "field with a function": lambda x: Fields(_closure(x)),
    "field with an array of objects": lambda x: Fields(np.array([x, "a"], dtype=object)),
    "field within a field": lambda x: Fields(Fields([x])),
}


@pytest.mark.parametrize("hold", HELD.values(), ids=HELD)
def test_values_that_code_holds_count(hold: Callable[[float], Any]) -> None:
    first, again, other = (of(hold(x)) for x in (0.25, 0.25, 0.5))
    assert first == again != other


def test_an_object_that_holds_itself() -> None:
    maker = Maker(1)
    maker.value.append(maker)
    other = Maker(2)
    other.value.append(other)
    assert of(maker) != of(other)


@pytest.mark.slow
def test_another_process_has_the_same_fingerprint(folder: Path) -> None:
    main = load(folder, main=GLOBAL.format(rate=0.1, out="a"))
    made = of(main.method), of(functools.partial(main.direct, {"b", "a", "c"}))
    code = (
        "import functools, main; from lowland.lab import fingerprint as f; "
        "print(f.of(main.method, ''), f.of(functools.partial(main.direct, {'c', 'a', 'b'}), ''))"
    )
    for seed in ("1", "2"):
        run = subprocess.run(
            [sys.executable, "-c", code],
            env={"PYTHONPATH": f"{folder}:{':'.join(sys.path)}", "PYTHONHASHSEED": seed},
            capture_output=True, text=True, check=True,
        )  # fmt: skip
        assert tuple(run.stdout.split()) == made


def test_lowlands_own_have_none() -> None:
    for text in ("sam", "sam:rho=0.1", "looksam:geometry=layerwise", "late:start=3,inner=stable-sam"):
        assert of(make(text)) is None


def test_methods_from_files(folder: Path) -> None:
    first, second = folder / "first.py", folder / "second.py"
    first.write_text(METHOD, encoding="utf-8")
    second.write_text(METHOD.replace("here.loss, there", "there.loss, there"), encoding="utf-8")
    one, other = (of(make(f"{path}:USAM")) for path in (first, second))
    assert one
    assert one != other
    assert of(make(f"late:start=3,inner={first}:USAM")) == one
    first.write_text(METHOD + "# edited while the class is loaded, as beside a notebook", encoding="utf-8")
    assert of(make(f"{first}:USAM")) == one


def test_a_file_s_neighbour_counts(folder: Path) -> None:
    (folder / "neighbour.py").write_text(NET, encoding="utf-8")
    place = folder / "model_of_mine.py"
    place.write_text("from neighbour import Net\ndef net():\n    return Net(1, 1)\n", encoding="utf-8")
    first = of(OUTSIDE_MODEL.load(f"{place}:net"))
    (folder / "neighbour.py").write_text(NET + "more = 1\n", encoding="utf-8")
    importlib.reload(sys.modules["neighbour"])
    assert of(OUTSIDE_MODEL.load(f"{place}:net")) != first


def test_classes_without_source_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two of them could not be told apart, so one's runs would be kept for the other's."""
    prompt = ModuleType("typed_at_a_prompt")
    monkeypatch.setitem(sys.modules, prompt.__name__, prompt)
    exec(METHOD, vars(prompt))
    with pytest.raises(ArgumentError, match=r"a method must be .* USAM has no source; write it into a file"):
        fingerprint.of(prompt.USAM(), OUTSIDE.what)
