from __future__ import annotations

import pytest

from lowland.core.errors import ArgumentError
from lowland.lab.studies.sweeps.ranges import Choices, Range, parse, split_bare


@pytest.mark.parametrize(("text", "expected"), [
    ("0.02..0.5:log", Range(low=0.02, high=0.5, log=True)),
    ("1..8", Range(low=1, high=8, integer=True)),
    ("1..8:log", Range(low=1, high=8, integer=True, log=True)),
    ("0..1.0", Range(low=0, high=1)),
    ("1e-4..1e-1:log", Range(low=1e-4, high=0.1, log=True)),
    ("-2..-1", Range(low=-2, high=-1, integer=True)),
    (".5..1.", Range(low=0.5, high=1)),
    ("1...5", None),
    ("0...5", Range(low=0, high=0.5)),
    ("0.0..1.0:step=0.1", Range(low=0, high=1, step=0.1)),
    ("2..8:step=2", Range(low=2, high=8, integer=True, step=2)),
    ("32|64", Choices(values=("32", "64"))),
    ("None|0.5", Choices(values=("None", "0.5"))),
    ("(0.9,0.99)|(0.9,0.95)", Choices(values=("(0.9,0.99)", "(0.9,0.95)"))),
])  # fmt: skip
def test_what_is_written_is_what_is_searched(text: str, expected: Range | Choices | None) -> None:
    if expected is None:  # 1. and .5 are numbers, but not in this order
        with pytest.raises(ArgumentError, match="low < high"):
            parse("rho", text)
        return
    made = parse("rho", text)
    assert made is not None
    assert made.text == text
    assert vars(made) | {"text": ""} == vars(expected) | {"text": ""}
    assert parse("rho", made.text) == made


@pytest.mark.parametrize("text", ["0.1", "sgd", "'a..b'", "'a|b'", "(1, 2)", "../data", "data/..", "file.py", "None"])
def test_ordinary_values_are_none(text: str) -> None:
    assert parse("field", text) is None


@pytest.mark.parametrize(("text", "rule"), [
    ("a..b", r"rho must be a range between two numbers, but is 'a\.\.b'; write 0\.02\.\.0\.5"),
    ("0.1..", "between two numbers"),
    ("..0.1", "between two numbers"),
    ("0.1..inf", "between two numbers"),
    ("0.1..nan", "between two numbers"),
    ("0.5..0.1", r"rho must be a range with low < high, but is '0\.5\.\.0\.1'; write the lower end first"),
    ("1..1", "low < high"),
    ("0..1:log", "above 0 for :log"),
    ("-1.0..1.0:log", "above 0 for :log"),
    ("0.1..0.2:lin", "with :log or :step=0.1, or without, but has 'lin'"),
    ("0.1..0.2:step=x", "but has 'step=x'"),
    ("0.1..0.2:log:step=0.1", "has both; leave one out"),
    ("0.0..1.0:step=0.3", "a step > 0 that leads from one end to the other"),
    ("0.0..1.0:step=0", "a step > 0"),
    ("0.0..1.0:step=-0.5", "a step > 0"),
    ("1..2:step=0.5", "a step > 0"),
    ("1|", "choices that are plain values, such as 32|64, but one is ''"),
    ("1|1", "choices that differ"),
    ("sam|sam:rho=0.1", "plain values"),
    ("0.1..0.2|0.3", "a range or choices, but '0.1..0.2|0.3' has both"),
])  # fmt: skip
def test_refused(text: str, rule: str) -> None:
    with pytest.raises(ArgumentError, match=rule):
        parse("rho", text)


def test_a_value_has_four_digits_and_stays_in_its_range() -> None:
    values = Range(low=0.02, high=0.5)
    assert values.spell(0.123456789) == "0.1235"
    assert values.spell(0.5) == "0.5"
    narrow = Range(low=0.123451, high=0.123459)
    for value in (0.123451, 0.123455, 0.123459):
        assert 0.123451 <= float(narrow.spell(value)) <= 0.123459
    assert Range(low=0.0, high=1.0, step=0.1).spell(0.30000000000000004) == "0.3"
    assert Range(low=1, high=8, integer=True).spell(3) == "3"
    assert float(Range(low=1e-8, high=1.0, log=True).spell(1.23456e-6)) == 1.235e-6


def test_points_go_from_end_to_end() -> None:
    assert Range(low=0.0, high=1.0).points(5) == ["0", "0.25", "0.5", "0.75", "1"]
    assert Range(low=0.01, high=1.0, log=True).points(3) == ["0.01", "0.1", "1"]
    assert Range(low=1, high=3, integer=True).points(9) == ["1", "2", "3"]
    assert Range(low=0.0, high=1.0, step=0.25).points(3) == ["0", "0.5", "1"]
    assert Choices(values=("a", "b")).points(7) == ["a", "b"]


def test_separators_in_quotes_and_brackets_separate_nothing() -> None:
    assert split_bare("a='x|y'|b=(1|2)|c", "|") == ["a='x|y'", "b=(1|2)", "c"]
