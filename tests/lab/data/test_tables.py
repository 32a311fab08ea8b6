from __future__ import annotations

import pytest

from lowland.core.errors import DataError
from lowland.lab.data.tables import Table, labelled_lines

PLAIN = Table(columns=("text", "label"), texts=("text",), label="label", classes={"no": 0, "yes": 1})
PAIRS = Table(columns=("label", "b", "a"), texts=("a", "b"), label="label", classes={"0": 0, "1": 1}, header=False)


def read(table: Table, content: str | bytes) -> list[tuple[tuple[str, ...], int]]:
    content = content.encode() if isinstance(content, str) else content
    found = table.read("made", "made.tsv", content, "https://example.org")
    return list(zip(found.texts, found.labels, strict=True))


def test_quotes_are_characters_like_others() -> None:
    assert read(PLAIN, 'text\tlabel\n" a \'b\tyes\nc "\tno\n') == [(("\" a 'b",), 1), (('c "',), 0)]


@pytest.mark.parametrize("end", ["\n", "\r\n"])
@pytest.mark.parametrize("last", [True, False])
def test_line_ends(end: str, last: bool) -> None:
    content = end.join(["text\tlabel", "a\tyes", "b\tno"]) + (end if last else "")
    assert read(PLAIN, content) == [(("a",), 1), (("b",), 0)]


def test_pairs_are_read_in_the_order_of_the_table_without_a_header() -> None:
    assert read(PAIRS, "1\tsecond\tfirst\n0\t\t\n") == [(("first", "second"), 1), (("", ""), 0)]


def test_line_separators_of_unicode_do_not_end_a_line() -> None:
    assert read(PAIRS, "1\tx\u2028y\tz\x85\n") == [(("z\x85", "x\u2028y"), 1)]


@pytest.mark.parametrize(("content", "message"), [
    ("text\tlabels\na\tyes\n", r"made.tsv, line 1, must name the columns text, label, but is \['text', 'labels'\]"),
    ("", "must hold at least one example"),
    ("text\tlabel\n", "must hold at least one example"),
    ("text\tlabel\na\tyes\nb\n", r"line 3, must have 2 cells \(text, label\), separated by tabs, but has 1"),
    ("text\tlabel\na\tb\tyes\n", "line 2, must have 2 cells .* but has 3"),
    ("text\tlabel\na\tyes\n\n", "line 3, must have 2 cells .* but has 0"),
    ("text\tlabel\na\tYes\n", "line 2, must have a label of no, yes, but has 'Yes'"),
    (b"text\tlabel\na\tyes\n\xff\tno\n", "line 3, must be UTF-8, but .*0xff"),
    ("text\tlabel\n" + "a" * 200_000 + "\tyes\n", "line 2, cannot be read .*field larger"),
])  # fmt: skip
def test_malformed_tables(content: str | bytes, message: str) -> None:
    with pytest.raises(DataError, match=message) as caught:
        read(PLAIN, content)
    assert str(caught.value).startswith("made: made.tsv")
    assert str(caught.value).endswith("get it again from https://example.org")


def lines(content: bytes) -> list[tuple[tuple[str, ...], int]]:
    found = labelled_lines("made", "made.txt", content, "https://example.org", {"A": 0, "B": 1})
    return list(zip(found.texts, found.labels, strict=True))


@pytest.mark.parametrize(
    "content", [b"B:x what : is\nA:y  a b", b"B:x what : is\nA:y  a b\n", b"B:x what : is\r\nA:y  a b"]
)
def test_lines_with_a_label_in_front(content: bytes) -> None:
    assert lines(content) == [(("what : is",), 1), ((" a b",), 0)]


@pytest.mark.parametrize(("content", "message"), [
    (b"", "line 1, must be LABEL:detail and a text, but is ''"),
    (b"A:x one\nA two", "line 2, must be LABEL:detail and a text, but is 'A two'"),
    (b"A:x one\nA:y", "line 2, must be LABEL:detail and a text"),
    (b"A:x one\nC:y two", "line 2, must have a label of A, B, but has 'C'"),
    (b"A:x one\nA:y tw\xe9", "line 2, must be UTF-8"),
])  # fmt: skip
def test_malformed_lines(content: bytes, message: str) -> None:
    with pytest.raises(DataError, match=message) as caught:
        lines(content)
    assert str(caught.value).endswith("get it again from https://example.org")
