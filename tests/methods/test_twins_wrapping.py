"""The methods around other methods follow their numpy twins."""

from __future__ import annotations

import pytest
from reference import late, looksam, plain, renormalized, sam, sampa, switch, vsam
from reference.follow import BASES, assert_follows, in_groups
from reference.normalized import Normalized

from lowland import SAM, VSAM, Late, LookSAM, Renormalized, SAMPa, Switch
from lowland.core.schedule import after, every

WINDOW = {"window": 4, "blocks": 2, "last": 2, "a1": 0.9, "a2": 0.5}
LOOK = {"rho": 0.2, "k": 3, "alpha": 0.5}

PAIRS = {
    "stable-sam": (
        Renormalized(inner=SAM(rho=0.3)),
        renormalized.Renormalized,
        {"inner": (sam.SAM, {"rho": 0.3})},
    ),
    "stable-looksam": (
        Renormalized(inner=LookSAM(**LOOK)),
        renormalized.Renormalized,
        {"inner": (looksam.LookSAM, LOOK)},
    ),
    "stable-late-sam": (
        Renormalized(inner=Late(inner=SAM(rho=0.3), start=5)),
        renormalized.Renormalized,
        {"inner": (late.Late, {"start": 5, "inner": (sam.SAM, {"rho": 0.3})})},
    ),
    "late": (Late(inner=SAM(rho=0.3), start=0.5, total=12), late.Late, {"start": 6, "inner": (sam.SAM, {"rho": 0.3})}),
    "late-looksam": (Late(inner=LookSAM(**LOOK), start=4), late.Late, {"start": 4, "inner": (looksam.LookSAM, LOOK)}),
    "late-sampa": (Late(inner=SAMPa(rho=0.2), start=3), late.Late, {"start": 3, "inner": (sampa.SAMPa, {"rho": 0.2})}),
    "late-stable-looksam": (
        Late(inner=Renormalized(inner=LookSAM(**LOOK)), start=2),
        late.Late,
        {"start": 2, "inner": (renormalized.Renormalized, {"inner": (looksam.LookSAM, LOOK)})},
    ),
    "every-second": (
        Switch(when=every(2, offset=1), inner=SAM(rho=0.3)),
        switch.Switch,
        {"when": lambda t: t % 2 == 1, "inner": (sam.SAM, {"rho": 0.3})},
    ),
    "sam-then-sampa": (
        Switch(when=after(5), inner=SAMPa(rho=0.2), otherwise=SAM(rho=0.3)),
        switch.Switch,
        {"when": lambda t: t >= 5, "inner": (sampa.SAMPa, {"rho": 0.2}), "otherwise": (sam.SAM, {"rho": 0.3})},
    ),
    # Both count their own steps, in memory that has the same name.
    "looksam-or-vsam": (
        Switch(when=every(3), inner=LookSAM(**LOOK), otherwise=VSAM(rho=0.2, **WINDOW)),
        switch.Switch,
        {
            "when": lambda t: t % 3 == 0,
            "inner": (looksam.LookSAM, LOOK),
            "otherwise": (vsam.VSAM, {"rho": 0.2, **WINDOW}),
        },
    ),
    "looksam-or-looksam": (
        Switch(when=every(4, offset=2), inner=LookSAM(rho=0.3, k=2), otherwise=LookSAM(**LOOK)),
        switch.Switch,
        {
            "when": lambda t: t % 4 == 2,
            "inner": (looksam.LookSAM, {"rho": 0.3, "k": 2}),
            "otherwise": (looksam.LookSAM, LOOK),
        },
    ),
}


@pytest.mark.parametrize("base_key", BASES)
@pytest.mark.parametrize("key", PAIRS)
def test_follows_its_twin(key, base_key):
    assert_follows(*PAIRS[key], base_key)


def test_stable_sam_follows_its_twin_on_amsgrad():
    assert_follows(*PAIRS["stable-sam"], "adam-amsgrad")


def test_stable_sam_follows_its_twin_on_a_normalized_network():
    assert_follows(*PAIRS["stable-sam"], "momentum", problem=Normalized(kind="batch"))


@pytest.mark.parametrize("key", ["stable-sam", "late", "every-second"])
def test_groups_with_their_own_rho_reach_inner_methods(key):
    method, twin_class, fields = PAIRS[key]
    rhos = [0.2, 0.0, 0.05, 0.1]
    fields = {**fields, "inner": (sam.SAM, {"rho": rhos})}
    assert_follows(method, twin_class, fields, "momentum", groups=in_groups(rhos))


def test_before_its_start_a_late_method_asks_once():
    run, _ = assert_follows(*PAIRS["late"], "momentum")
    assert run.engine.cost.probes == 6 * 1 + 6 * 2


def test_a_plain_gradient_stays_as_long_as_it_is():
    fields = {"inner": (plain.Plain, {})}
    method = Renormalized(inner=Late(inner=SAM(), start=99))
    assert_follows(method, renormalized.Renormalized, fields, "momentum")
