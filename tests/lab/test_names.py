"""Tasks and models as text, and back."""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from lowland.core.errors import ArgumentError, UnknownNameError
from lowland.lab import names
from lowland.lab.task import Task
from lowland.lab.tasks.digits import Digits

FILE = """
from dataclasses import dataclass
from beside import WIDTH
from torch import nn
from lowland.lab import Task

@dataclass(frozen=True, kw_only=True)
class Own(Task):
    '''A task of the user's own.'''
    width: int = WIDTH
    classes = 3
    def datasets(self, root): ...
    def model(self, name): return nn.Linear(self.width, self.classes)
    def loss(self, model, batch): ...

class Unfinished(Task):
    def model(self, name): ...

class Net(nn.Linear):
    def __init__(self, classes, width=4): super().__init__(width, classes)

class Bare(nn.Linear):
    def __init__(self, depth): super().__init__(depth, 1)

def flat(classes): return nn.Linear(1, classes)
"""


@dataclass(frozen=True, kw_only=True)
class Many(Task):
    """Fields of many kinds."""

    count: int = 0
    rate: float = 0.5
    label: str = "plain"
    sizes: tuple[Any, ...] = ()
    flag: bool = False
    most: int | None = None
    computed: int = field(default=3, init=False)
    classes: ClassVar[int] = 2

    def datasets(self, root: Path | None) -> Any:
        raise NotImplementedError

    def model(self, name: str) -> nn.Module:
        return nn.Linear(1, self.classes)

    def loss(self, model: nn.Module, batch: Any) -> Any:
        raise NotImplementedError


@pytest.fixture(autouse=True)
def _tasks_as_before(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(names, "loaded", {})


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The place of a file with a task and models, and of a module beside it."""
    (tmp_path / "own.py").write_text(FILE, encoding="utf-8")
    (tmp_path / "beside.py").write_text("WIDTH = 5", encoding="utf-8")
    monkeypatch.setattr(sys, "path", list(sys.path))
    yield str(tmp_path / "own.py")
    sys.modules.pop("beside", None)


def test_lowland_s_own_names() -> None:
    assert list(names.tasks()) == [
        "chars", "cifar10", "cifar100", "cola", "diabetes", "digits", "fashion-mnist", "keypoints", "mrpc", "qat",
        "rte", "sst2", "tabular", "transfer", "trec", "vit-large-batch",
    ]  # fmt: skip


@pytest.mark.parametrize("text", ["digits", "digits:noise=0.4", "cifar10:noise=0.2,noise_kind=asymmetric,noise_seed=3"])
def test_round_trips_of_text(text: str) -> None:
    assert names.spell(names.make(text)) == text


TEXTS = st.text(st.characters(codec="ascii", exclude_characters="\x00"), max_size=8)
PLAIN = st.integers() | st.booleans() | st.none() | st.floats(allow_nan=False) | TEXTS


@settings(max_examples=200, deadline=None)
@given(
    count=st.integers(),
    rate=st.floats(allow_nan=False, allow_infinity=False),
    label=TEXTS
    | st.sampled_from(
        ["3", "None", "a,b=c", "(1, 2", "it's", 'say "so", b=1', "1e5", " x", "inf", "[", "#", "a\\'b", "}"]
    ),
    sizes=st.lists(PLAIN.filter(lambda v: not (isinstance(v, float) and math.isinf(v))), max_size=3).map(tuple),
    flag=st.booleans(),
    most=st.none() | st.integers(),
)
def test_what_is_spelled_can_be_made(**fields: Any) -> None:
    task = Many(**fields)
    again = names.make(names.spell(task))
    assert again == task
    assert [type(getattr(again, name)) for name in fields] == [type(getattr(task, name)) for name in fields]
    assert hash(again) == hash(task)


def test_only_what_differs_is_spelled() -> None:
    assert names.spell(Many()) == f"{__name__}:Many"
    assert names.spell(Many(sizes=(1, 2), label="a, b")) == f"{__name__}:Many:label='a, b',sizes=(1, 2)"
    assert names.spell(Digits(noise=0.25)) == "digits:noise=0.25"


def test_a_task_from_a_file_imports_what_lies_beside_it(own: str) -> None:
    task: Any = names.make(f"{own}:Own")
    assert task.width == 5
    assert names.make(f"{own}:Own:width=7").width == 7  # type: ignore[attr-defined]
    assert names.spell(names.make(f"{own}:Own:width=7")) == f"{own}:Own:width=7"
    assert task == names.make(f"{own}:Own")


@pytest.mark.parametrize(("text", "kind", "rule"), [
    ("cifar-10", UnknownNameError, "unknown task 'cifar-10': did you mean 'cifar10'"),
    ("digits:nose=0.1", UnknownNameError, "unknown field of digits 'nose': did you mean 'noise'"),
    ("digits:noise=0.1,more", ArgumentError, "fields must be written name=value, but one is 'more'"),
    ("digits:noise=2", ArgumentError, r"noise must be in \[0, 1\), but is 2"),
    ("none.py:Own", ArgumentError, "a task must be in a file that is there"),
    ("no.such.module:Own", ArgumentError, "there is no module 'no.such.module'"),
    ("OWN", ArgumentError, "must be named with its class, .* there: .*own.py:Own$"),
    ("OWN:Unfinished", ArgumentError, "must name a class made from lowland.lab.Task, complete, but is .*Unfinished"),
    ("OWN:Net", ArgumentError, "must name a class made from lowland.lab.Task"),
    ("OWN:Missing", ArgumentError, "but is not there; there: Own"),
])  # fmt: skip
def test_refused(own: str, text: str, kind: type[Exception], rule: str) -> None:
    with pytest.raises(kind, match=rule):
        names.make(text.replace("OWN", own))


def test_models_of_the_task() -> None:
    task = names.make("digits")
    maker, outside = names.model_maker(task, "mlp")
    assert outside is None
    assert maker()(torch.zeros(2, 1, 8, 8)).shape == (2, 10)


def test_models_from_elsewhere_borrow_from_the_task(own: str) -> None:
    maker, outside = names.model_maker(names.make("digits"), f"{own}:Net:width=7")
    made: Any = maker()
    assert (made.in_features, made.out_features) == (7, 10)  # the task's classes
    assert outside.__name__ == "Net"
    narrow: Any = names.model_maker(Many(), f"{own}:Net")[0]()
    assert (narrow.in_features, narrow.out_features) == (4, 2)
    flat: Any = names.model_maker(Many(), f"{own}:flat")[0]()
    assert flat.out_features == 2
    given: Any = names.model_maker(Many(), f"{own}:flat:classes=6")[0]()
    assert given.out_features == 6
    library: Any = names.model_maker(Many(), "torch.nn:Linear:in_features=3,out_features=2")[0]()
    assert library.in_features == 3


@pytest.mark.parametrize(("model", "rule"), [
    ("OWN:Bare", "needs depth, which the task does not have; write it out: .*own.py:Bare:depth="),
    ("OWN:Net:wide=3", "unknown argument of .*own.py:Net 'wide': did you mean 'width'"),
    ("OWN:Own", "must name an nn.Module class, or a function that returns a module"),
    ("OWN", "a model from a file must be named with its class"),
])  # fmt: skip
def test_models_that_are_refused(own: str, model: str, rule: str) -> None:
    with pytest.raises(ArgumentError, match=rule):
        names.model_maker(Many(), model.replace("OWN", own))


class Point:
    """An entry point, as an installed package declares it."""

    def __init__(self, name: str, value: Any) -> None:
        self.name, self.value = name, value

    def load(self) -> Any:
        return self.value


def test_entry_points(monkeypatch: pytest.MonkeyPatch) -> None:
    groups = {"lowland.tasks": [Point("many", Many)], "lowland.models": [Point("narrow", nn.Linear)]}
    monkeypatch.setattr("lowland.core.outside.entry_points", lambda group: groups[group])
    assert names.make("many:count=3") == Many(count=3)
    assert names.spell(Many(count=3)) == "many:count=3"
    made: Any = names.model_maker(Many(), "narrow:in_features=2,out_features=1")[0]()
    assert made.in_features == 2
    names.loaded.pop("many")
    with pytest.raises(UnknownNameError, match="unknown task 'manny': did you mean 'many'"):
        names.make("manny")
