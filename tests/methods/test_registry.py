from __future__ import annotations

import dataclasses
import math

import pytest

from lowland import (
    AESAM,
    ARSAM,
    ASAM,
    ESAM,
    KSAM,
    SAM,
    SAMON,
    VSAM,
    BiSAM,
    Late,
    LookSAM,
    Method,
    MicroSAM,
    Plain,
    Renormalized,
    SAMPa,
)
from lowland.core import schedule
from lowland.core.errors import ArgumentError, UnknownNameError
from lowland.core.geometry import L2, Adaptive, Layerwise
from lowland.methods import METHODS, key_of, make, spell
from lowland.methods.stable_sam import StableSAM

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
    "k-sam:k=3": KSAM(k=3),
    "k-sam:k=0.3": KSAM(k=0.3),
    "esam:mask=element": ESAM(mask="element"),
    "ae-sam:l1=-inf,l2=-inf,total=5": AESAM(l1=-math.inf, l2=-math.inf, total=5),
    "asam:geometry=l2": ASAM(geometry=L2()),
    "late": Late(),
    "late:start=5": Late(start=5),
    "late:start=0.5,total=10,inner=looksam:k=3,alpha=0.2": Late(start=0.5, total=10, inner=LookSAM(k=3, alpha=0.2)),
    "stable-sam:inner=late:start=2,inner=sam:rho=0.1": Renormalized(inner=Late(start=2, inner=SAM(rho=0.1))),
}


def test_the_registry_holds_methods_under_their_keys():
    for key, kind in METHODS.items():
        assert issubclass(kind, Method)
        assert key_of(kind()) == key
        if key != "stable-sam":  # named after what it does, because it goes around any method
            assert key.replace("-", "") == kind.__name__.lower()
    assert METHODS["stable-sam"] is Renormalized is StableSAM


@pytest.mark.parametrize("key", METHODS)
def test_every_field_has_a_default_and_is_documented(key):
    kind = METHODS[key]
    documented = kind.__doc__ + (VSAM.__doc__ if kind is ARSAM else "")
    for field in (field for field in dataclasses.fields(kind) if field.init):
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
    if key in ("late", "stable-sam"):
        assert spell(METHODS[key](inner=SAM())) == key
        assert spell(METHODS[key](inner=SAM(rho=0.75))) == f"{key}:inner=sam:rho=0.75"
    else:
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
    BiSAM(surrogate=lambda model, batch: model(batch)),
    SAMON(extra=lambda module, name, parameter: True),
    Late(start=1, inner=SAM(geometry=Adaptive(eta=0.5))),
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


def test_defaults_can_be_given_by_key_also_for_inner_methods():
    def fill(key):
        return {"looksam": {"alpha": 0.2, "k": 9}, "late": {"start": 7}}.get(key, {})

    assert make("sam", fill=fill) == SAM()
    assert make("looksam:k=2", fill=fill) == LookSAM(k=2, alpha=0.2)
    assert make("looksam", fill=fill, alpha=0.3) == LookSAM(k=9, alpha=0.3)
    assert make("late:inner=looksam:k=2", fill=fill) == Late(start=7, inner=LookSAM(k=2, alpha=0.2))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("lookam", "unknown method 'lookam': did you mean 'looksam'.*known are adasam, ae-sam, arsam"),
        ("", "unknown method ''.*known are"),
        ("sam:rh=0.1", "unknown field of sam 'rh': did you mean 'rho'.*known are ascent_gradient, geometry, rho"),
        ("sam:lam=0.1", "unknown field of sam 'lam'.*known are ascent_gradient, geometry, rho"),
        ("sam:needs_batch=True", "unknown field of sam 'needs_batch'"),
        ("late:rho=0.1", "unknown field of late 'rho'.*known are inner, start, total"),
        ("late:inner=looksm", "unknown method 'looksm': did you mean 'looksam'"),
        ("sam:inner=sam", "unknown field of sam 'inner'"),
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
        ("late:start=1.5", "start must be an integer >= 0, in steps, or .*, but is 1.5"),
        ("late:start=0.5,total=0", "total must be an integer >= 1, but is 0"),
        ("stable-sam:inner=sampa", "inner must ask for the whole batch's gradient.*but SAMPa does not"),
        ("k-sam:k=0", "k must be an integer >= 1, but is 0"),
        ("k-sam:k=1.5", r"k must be in \[0, 1\], but is 1.5"),
        ("wsam:gamma=1", "gamma must be < 1, but is 1"),
        ("late:inner=sam:rho=0.1,start=5", "unknown field of sam 'start'.*inner= takes the rest .*, so write it last"),
        ("late:inner=sam,start=5", "unknown method 'sam,start=5'.*so write it last"),
        ("sampa:lookahead=rwa", "lookahead must be one of 'base', 'raw', but is 'rwa'"),
    ],
)
def test_bad_values_are_refused(text, message):
    with pytest.raises(ArgumentError, match=message):
        make(text)


class Mine(SAM):
    pass


def test_classes_outside_the_registry_are_called_by_their_place():
    assert key_of(Mine()) == f"{__name__}:Mine"
    assert spell(Mine(rho=0.1)) == f"{__name__}:Mine:rho=0.1"
    assert make(spell(Mine(rho=0.1))) == Mine(rho=0.1)
    METHODS.pop(f"{__name__}:Mine")
