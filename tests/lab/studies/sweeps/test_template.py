from __future__ import annotations

from pathlib import Path

import pytest

from lowland.core.errors import ArgumentError, UnknownNameError
from lowland.lab.studies.sweeps.template import Template


def places(template: Template) -> dict[str, tuple[str, str]]:
    return {each.name: (each.place, each.values.text) for each in template.parameters}


def test_a_contestant_with_ranges_of_method_and_recipe() -> None:
    made = Template.contestant("sampa:rho=0.02..0.5:log,lam=0.2@lr=0.05..0.4:log,batch_size=32|64")
    assert places(made) == {
        "rho": ("method", "0.02..0.5:log"), "lr": ("recipe", "0.05..0.4:log"), "batch_size": ("recipe", "32|64"),
    }  # fmt: skip
    filled = made.fill({"rho": "0.1", "lr": "0.2", "batch_size": "64"})
    assert filled == "sampa:rho=0.1,lam=0.2@lr=0.2,batch_size=64"


@pytest.mark.parametrize("text", [
    "sam", "plain@epochs=4", "sam:rho=0.1", "sampa:rho=0.02..0.5:log@lr=0.05..0.4:log,batch_size=32|64|128",
    "late:start=0.1..0.9,inner=looksam:k=2..8,alpha=0.1..0.5:step=0.1@lr=0.1|0.2", "stable-sam:inner=sam|asam",
])  # fmt: skip
def test_round_trip(text: str) -> None:
    made = Template.contestant(text)
    assert str(made) == text
    assert Template.contestant(str(made)) == made
    assert made.fill({each.name: each.values.text for each in made.parameters}) == text


def test_inner_methods_have_fields_of_their_own() -> None:
    made = Template.contestant("late:start=0.1..0.9,inner=looksam:k=2..8,alpha=0.1..0.5@lr=0.1|0.2")
    assert list(places(made)) == ["start", "inner.k", "inner.alpha", "lr"]
    assert places(made)["lr"][0] == "recipe"
    assert list(places(Template.contestant("late:start=3,inner=stable-sam:inner=sam:rho=0.1..0.2"))) == [
        "inner.inner.rho"
    ]
    assert list(places(Template.contestant("stable-sam:inner=sam|asam"))) == ["inner"]


def test_a_recipe_field_of_the_same_name_says_so(place: Path) -> None:
    Path("own.py").write_text(
        "from dataclasses import dataclass\nimport lowland\n@dataclass(frozen=True, kw_only=True)\n"
        "class Own(lowland.SAM):\n    lr: float = 0.5\n    k: int = 3\n"
    )
    made = Template.contestant("own.py:Own:lr=0..1,k=0..1@lr=1..2")
    assert places(made) == {"lr": ("method", "0..1"), "k": ("method", "0..1"), "recipe.lr": ("recipe", "1..2")}
    integer = {each.name: getattr(each.values, "integer", None) for each in made.parameters}
    assert integer == {"lr": False, "k": True, "recipe.lr": False}  # by the defaults of the fields


def test_a_path_with_dots_and_the_sign_is_no_range(place: Path) -> None:
    folder = place / "me@work"
    folder.mkdir()
    (folder / "own.py").write_text(
        "from dataclasses import dataclass\nimport lowland\n@dataclass(frozen=True, kw_only=True)\n"
        "class Own(lowland.SAM):\n    pass\n"
    )
    path = f"{folder}/../me@work/own.py:Own"
    assert Template.contestant(path).parameters == ()
    assert list(places(Template.contestant(f"{path}:rho=0.1..0.2"))) == ["rho"]
    assert Template.contestant(f"{path}:rho=0.1..0.2").parameters[0].place == "method"


def test_fields_of_the_task() -> None:
    made = Template.task("digits:noise=0.1|0.4,noise_kind=asymmetric")
    assert places(made) == {"task.noise": ("task", "0.1|0.4")}
    assert made.fill({"task.noise": "0.4"}) == "digits:noise=0.4,noise_kind=asymmetric"
    assert Template.task("digits").parameters == ()
    assert not getattr(Template.task("digits:noise=0..1").parameters[0].values, "integer", True)


@pytest.mark.parametrize(("text", "kind", "rule"), [
    ("sam|asam", ArgumentError, r"choices must be written name=x\|y, but one is 'sam\|asam'"),
    ("sam:rho=a..b", ArgumentError, "rho must be a range between two numbers"),
    ("sam:rho=0.1..0.2,rho=0.1|0.2", ArgumentError, "a field must have one range, but rho has two"),
    ("sma:rho=0.1..0.2", UnknownNameError, "unknown method 'sma': did you mean 'sam'"),
    (3, ArgumentError, "methods must be texts with ranges"),
])  # fmt: skip
def test_refused(text: str, kind: type[Exception], rule: str) -> None:
    with pytest.raises(kind, match=rule):
        Template.contestant(text)
