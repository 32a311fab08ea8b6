from __future__ import annotations

import dataclasses

import pytest

from lowland import Method, schedule
from lowland.errors import ArgumentError, UnknownNameError
from lowland.geometry import L2, Adaptive, Layerwise
from lowland.methods import ARSAM, METHODS, SAM, VSAM, LookSAM, MicroSAM, Plain, SAMPa, key_of, make, spell

TEXTS = {
    "plain": Plain(),
    "sam": SAM(),
    "sam:rho=0.1": SAM(rho=0.1),
    "sam:rho=0": SAM(rho=0),
    "sam:rho=1e-3": SAM(rho=0.001),
    "sam:geometry=adaptive": SAM(geometry=Adaptive()),
    "sampa:rho=0.2,lam=0.5,lookahead=raw": SAMPa(rho=0.2, lam=0.5, lookahead="raw"),
    "looksam:geometry=layerwise,k=3,decomposition=tensor": LookSAM(geometry=Layerwise(), k=3, decomposition="tensor"),
    "micro-sam:m=2": MicroSAM(m=2),
    "vsam:window=7,p_max=0.5": VSAM(window=7, p_max=0.5),
    "arsam:warmup=10": ARSAM(warmup=10),
}


def test_the_registry_holds_methods_under_their_keys():
    assert list(METHODS) == ["plain", "sam", "sampa", "looksam", "micro-sam", "vsam", "arsam"]
    for key, kind in METHODS.items():
        assert issubclass(kind, Method)
        assert key_of(kind()) == key
        assert key.replace("-", "") == kind.__name__.lower()


@pytest.mark.parametrize("key", METHODS)
def test_every_field_has_a_default_and_is_documented(key):
    kind = METHODS[key]
    documented = kind.__doc__ + (VSAM.__doc__ if kind is ARSAM else "")
    for field in dataclasses.fields(kind):
        assert field.default is not dataclasses.MISSING
        assert f"{field.name}:" in documented
    for section in ("Args:", "Cost:", "Reference:", "arXiv" if kind is not Plain else "Annals"):
        assert section in kind.__doc__


@pytest.mark.parametrize(("text", "method"), TEXTS.items())
def test_make_reads_text(text, method):
    assert make(text) == method


@pytest.mark.parametrize("method", TEXTS.values(), ids=TEXTS)
def test_make_gives_back_what_spell_wrote(method):
    assert make(spell(method)) == method


@pytest.mark.parametrize("key", METHODS)
def test_defaults_are_not_spelled(key):
    assert spell(METHODS[key]()) == key
    assert spell(METHODS[key](rho=METHODS[key]().rho)) == key
    assert spell(METHODS[key](rho=0.75)) == f"{key}:rho=0.75"


def test_a_field_back_at_its_class_default_is_not_spelled():
    assert spell(SAMPa(rho=0.1)) == "sampa"
    assert spell(SAMPa(rho=0.05)) == "sampa:rho=0.05"


# What `make` cannot read, `spell` must not write: the text names a run.
UNSPEAKABLE = [
    SAM(geometry=Adaptive(eta=0.5)),
    SAM(geometry=Layerwise(trust=False)),
    SAM(geometry=L2(select=lambda module, name, parameter: True)),
    SAM(rho=schedule.cosine(0.1, 0.2, steps=5)),
]


@pytest.mark.parametrize("method", UNSPEAKABLE, ids=lambda method: type(method.geometry).__name__)
def test_two_methods_never_share_a_spelling(method):
    try:
        text = spell(method)
    except ArgumentError:
        return
    assert make(text) == method


def test_given_defaults_fill_what_the_text_leaves_open():
    assert make("sampa:lam=0.5", rho=0.3, lam=0.1) == SAMPa(rho=0.3, lam=0.5)
    assert make("looksam", alpha=0.2) == LookSAM(alpha=0.2)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("lookam", "unknown method 'lookam': did you mean 'looksam'.*known are arsam, looksam, micro-sam"),
        ("", "unknown method ''.*known are"),
        ("sam:rh=0.1", "unknown field of sam 'rh': did you mean 'rho'.*known are geometry, rho"),
        ("sam:lam=0.1", "unknown field of sam 'lam'.*known are geometry, rho"),
        ("sam:needs_batch=True", "unknown field of sam 'needs_batch'"),
        ("sam:geometry=layer-wise", "unknown geometry 'layer-wise': did you mean 'layerwise'.*known are adaptive, l2"),
    ],
)
def test_unknown_names_are_refused(text, message):
    with pytest.raises(UnknownNameError, match=message):
        make(text)


def test_unknown_defaults_are_refused():
    with pytest.raises(UnknownNameError, match="unknown field of plain 'k'"):
        make("plain", k=5)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("sam:rho", "name=value.*'rho' in 'sam:rho'"),
        ("sam:0.1", "name=value.*'0.1'"),
        ("sam:rho=", "rho must be a number >= 0, but is ''"),
        ("sam:rho=abc", "rho must be a number >= 0, but is 'abc'"),
        ("sam:rho=-1", "rho must be a number >= 0, but is -1"),
        ("sam:rho=nan", "rho must be a number >= 0, but is 'nan'"),
        ("sam:rho=1e999", "rho must be a number >= 0, but is inf"),
        ("sam:rho=True", "rho must be a number >= 0, but is True"),
        ("sam:rho=__import__('os')", "rho must be a number >= 0"),
        ("looksam:k=2.5", "k must be an integer >= 1, but is 2.5"),
        ("sampa:lookahead=rwa", "lookahead must be one of 'base', 'raw', but is 'rwa'"),
    ],
)
def test_bad_values_are_refused(text, message):
    with pytest.raises(ArgumentError, match=message):
        make(text)


def test_classes_outside_the_registry_have_no_key():
    class Mine(SAM):
        pass

    with pytest.raises(ArgumentError, match="method must be one of METHODS, but is Mine; add your class"):
        key_of(Mine())
