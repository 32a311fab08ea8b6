from __future__ import annotations

import dataclasses
import inspect

import pytest

from lowland import ARSAM, SAM, VSAM, SAMPa
from lowland.cli.docstrings import parse
from lowland.methods import METHODS


class Example(SAM):
    """What it is,
    on two lines.

    A rule with ``d = g``, after :class:`SAM` and :meth:`lowland.methods.base.Method.plan`::

        d  = g
        d' = g'

    More of it.

    ::

        e = 0

    Args:
        rho: See :class:`SAM`.
        extra: First line,
            and second: with a colon.

    Cost: 1 gradient; see
    :class:`SAM`.

    Use: Here.

    Avoid: There.
    """


def test_parts():
    told = parse(Example)
    assert told.title == "What it is, on two lines."
    assert told.rule == (
        "A rule with d = g, after SAM and lowland.methods.base.Method.plan:",
        "    d  = g\n    d' = g'",
        "More of it.",
        "    e = 0",
    )
    assert told.fields["extra"] == "First line, and second: with a colon."
    assert told.fields["rho"] == parse(SAM).fields["rho"]  # looked up where it is explained
    assert told.sections == {"Cost": "1 gradient; see SAM.", "Use": "Here.", "Avoid": "There."}


def test_nothing_is_said_of_what_has_no_docstring():
    class Silent:
        pass

    told = parse(Silent)
    assert (told.title, told.rule, told.sections) == ("", (), {})


@pytest.mark.parametrize("key", METHODS)
def test_every_method_explains_itself(key):
    kind, told = METHODS[key], parse(METHODS[key])
    assert told.title.endswith(".")
    assert {f.name for f in dataclasses.fields(kind) if f.init} <= told.fields.keys()
    wanted = ["Cost", "Differs", "Invariants", "Use", "Avoid", "Reference"]
    assert list(told.sections) == [name for name in wanted if name != "Differs" or key != "plain"]
    text = " ".join([told.title, *told.rule, *told.fields.values(), *told.sections.values()])
    assert "``" not in text
    assert ":class:" not in text
    # nothing is lost on the way: the words of the docstring are all there
    words = inspect.cleandoc(kind.__doc__).replace("``", "").split()
    assert len(text.split()) >= 0.8 * len(words)


def test_a_preset_has_the_fields_of_its_base():
    assert parse(ARSAM).fields["window"] == parse(VSAM).fields["window"]


def test_formulas_keep_their_columns():
    (formulas,) = [text for text in parse(SAMPa).rule if text.startswith("    ")]
    assert len({line.index("=") for line in formulas.split("\n")}) == 1
