"""Columns of a text file as features, by hand, and the files that are refused."""

from __future__ import annotations

import math

import pytest
import torch

from lowland.core.errors import DataError
from lowland.lab.data.streams import stream
from lowland.lab.data.table import MOST, Rows, columns_of, divided, encoded, standardized

TEXT = b"size,color,age\n1,red,5\n3,blue,\n\n5, red ,7\n100,green,NA\n"


def features(text: bytes, train: list[int], categorical: tuple[str, ...] = ()) -> torch.Tensor:
    return encoded([*columns_of(text, ",", "f").values()], categorical, torch.tensor(train))


def test_columns_by_hand() -> None:
    """The last row is the test part: its 100 does not change the mean 3 and the deviation √(8/3), green is unknown."""
    made = features(TEXT, [0, 1, 2])
    unit = math.sqrt(8 / 3)
    expected = torch.tensor([
        # size, blue, red, age, age is missing; the mean age is 6, its deviation 1
        [-2 / unit, 0.0, 1.0, -1.0, 0.0],
        [0.0, 1.0, 0.0, 0.0, 1.0],
        [2 / unit, 0.0, 1.0, 1.0, 0.0],
        [97 / unit, 0.0, 0.0, 0.0, 1.0],
    ])  # fmt: skip
    torch.testing.assert_close(made, expected)
    assert made.dtype == torch.float32


def test_numbers_that_are_categories() -> None:
    made = features(b"a,b\n1,0\n2,1\n1,0\n", [0, 1, 2], ("a",))
    assert made[:, :2].tolist() == [[1, 0], [0, 1], [1, 0]]


def test_missing_only_in_the_test_part_and_missing_texts() -> None:
    made = features(b"a,b\n1,x\n3,?\n,x\n", [0, 1])
    assert made.tolist() == [[-1, 0, 1], [1, 1, 0], [0, 0, 1]]  # b is "" or x; a has no feature for what is missing


def test_features_that_do_not_vary_are_left_out() -> None:
    assert features(b"a,b,c,d\n1,7,x,\n3,7,x,\n5,8,y,1\n", [0, 1]).tolist() == [[-1.0], [1.0], [3.0]]
    with pytest.raises(DataError, match="at least one column besides the target must vary"):
        features(b"a\n1\n1\n2\n", [0, 1])


def test_what_is_a_number() -> None:
    columns = columns_of(b"a,b,c,d,e\n1e3,1_0,inf,x,NaN\n-2.5,2,1,1, \n", ",", "f")
    assert columns["a"].numbers().tolist() == [1000.0, -2.5]
    assert [columns[name].numbers() for name in "bcd"] == [None] * 3
    assert columns["e"].numbers().isnan().all()


def test_too_many_texts() -> None:
    rows = "\n".join(f"name {i}" for i in range(MOST + 1))
    with pytest.raises(DataError, match=r"at most 100 different texts, but has 101 .* ignore=\('who',\)"):
        features(f"who\n{rows}".encode(), [*range(MOST + 1)])


def test_quotes_separators_and_a_byte_order_mark() -> None:
    columns = columns_of('\ufeff"a;b";c\n"1";"x; y"\n'.encode(), ";", "f")
    assert {name: column.values for name, column in columns.items()} == {"a;b": ("1",), "c": ("x; y",)}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "must have a line of names and at least one row, but has 0 lines"),
        (b"a,b\n\n", "but has 1 lines"),
        (b"a,a\n1,2\n", "must have different names, but two are 'a'"),
        (b",a\n1,2\n", "must have a name, but column 1 has none; name it, or write .*index=False"),
        (b"a,b\n1,2\na,b\n3,4\n", "must have its names once, but line 3 repeats them"),
        (b"a,b\n1,2\n\n1\n", "must have 2 values, as its first line, but line 4 has 1"),
        (b"a,b\n1,\xff\n", "must be a text file in UTF-8"),
        (b'a,b\n1,2\n"1,2\n', "line 3 cannot be read .*; correct its quotes"),
    ],
)
def test_files_that_are_refused(content: bytes, message: str) -> None:
    with pytest.raises(DataError, match=message):
        columns_of(content, ",", "my.csv")


def test_a_target_that_is_missing() -> None:
    with pytest.raises(DataError, match="the target a must be in every row, but is missing in line 4"):
        columns_of(b"a,b\n1,2\n2,2\nNA,1\n", ",", "f")["a"].refuse_missing()
    with pytest.raises(DataError, match="but is missing in line 3"):
        columns_of(b"a,b\n1,2\n,\n", ",", "f")["a"].refuse_missing()


def test_standardized_targets() -> None:
    train, test, unit = standardized(torch.tensor([1.0, 5.0]).double(), torch.tensor([7.0]).double(), "t")
    assert (train.tolist(), test.tolist(), unit) == ([-1.0, 1.0], [2.0], 2.0)
    with pytest.raises(DataError, match=r"t must differ between rows of the training part, but is always 3\.0"):
        standardized(torch.full((4,), 3.0).double(), torch.zeros(1).double(), "t")


def test_the_division() -> None:
    test = divided(50, 0.2, stream(0, "x"))
    assert int(test.sum()) == 10
    assert torch.equal(test, divided(50, 0.2, stream(0, "x")))
    assert not torch.equal(test, divided(50, 0.2, stream(1, "x")))
    classes = torch.tensor([0] * 30 + [1] * 10)
    test = divided(40, 0.2, stream(0, "x"), classes)
    assert torch.bincount(classes[test]).tolist() == [6, 2]


def test_batches_of_rows() -> None:
    rows = Rows(torch.arange(6.0).view(3, 2), torch.tensor([1.0, 2.0, 3.0]), 4.0)
    inputs, targets, units = rows.batch(torch.tensor([2, 0]), None)
    assert (inputs.tolist(), targets.tolist(), units.tolist()) == ([[4, 5], [0, 1]], [3, 1], [4, 4])
