"""docs/migrate.md does what it says: a new loop has the weights of the old one, and all rows of its tables are run."""

from __future__ import annotations

import re

import pytest
from migrated.before import SECTIONS
from migrated.checks import CHECKS, ON_RANKS
from migrated.page import PAGE, ROOT, Row, after, apart, calls, pairs, rows, trained
from official.files import recorded

# How closely weights agree; both sides compute in float64. pytorch_optimizer rounds norms to float32, and its LookSAM
# adds 1e-8 to norms: tests/test_migrate_differs.py follows it with a rule that does the same.
TOLERANCES = {
    "davda54/sam": 1e-12,
    "With a closure": 1e-12,
    "SAM of pytorch_optimizer": 1e-6,
    "GSAM of pytorch_optimizer": 1e-6,
    "LookSAM of pytorch_optimizer": 5e-6,
    "WSAM of pytorch_optimizer": 1e-6,
    "composer": 1e-12,
    "The GSAM release": 1e-10,
    "With a radius in proportion to the learning rate": 1e-10,
    "The Momentum-SAM release": 1e-10,
    "Momentum-SAM with AdamW": 1e-10,
    "optax": 1e-12,
    "Transparent mode": 1e-12,
}
RECORDED = {  # releases that were run with the very arguments of a loop
    "davda54/sam": "sam_mlp_sgd",
    "With a closure": "sam_mlp_sgd",
    "composer": "composer_sam_i5_mlp_sgd",
    "With a radius in proportion to the learning rate": "gsam_follow_lr_floor_mlp_sgd",
    "optax": "optax_sam_opaque_mlp_sgd",
    "Transparent mode": "optax_sam_transparent_mlp_sgd",
}
# Whose weights are displaced between the steps, or live in a dictionary: only the last ones are compared.
AT_THE_END = ("The Momentum-SAM release", "Momentum-SAM with AdamW", "optax", "Transparent mode")
ROWS = [row for row in rows() if (row.section, row.what) not in ON_RANKS]


def the_same(heading: str, before: str, new: str) -> float:
    """The largest difference of any weight, over all steps where it can be had."""
    old, found = trained(before), trained(new)
    return apart(old.final, found.final) if heading in AT_THE_END else apart(old.path, found.path)


@pytest.mark.parametrize("heading", TOLERANCES)
def test_the_new_loop_has_the_weights_of_the_old_one(heading: str) -> None:
    assert the_same(heading, *pairs()[heading]) < TOLERANCES[heading]


@pytest.mark.parametrize("heading", TOLERANCES)
def test_a_radius_one_percent_larger_would_be_seen(heading: str) -> None:
    before, new = pairs()[heading]
    larger, count = re.subn(
        r"(rho=|linear\(|follow_lr\()(0\.\d+)", lambda m: f"{m[1]}{float(m[2]) * 1.01:.6f}", new, count=1
    )
    assert count == 1
    assert the_same(heading, before, larger) > 4 * TOLERANCES[heading]


@pytest.mark.parametrize("heading", RECORDED)
def test_both_loops_follow_the_release(heading: str) -> None:
    run = recorded(RECORDED[heading]).weights
    before, new = (trained(code) for code in pairs()[heading])
    assert apart(new.path, run) < 1e-10  # the GSAM release adds 1e-12 to norms
    assert apart(before.final, run[-1]) < 1e-10


def test_elementwise_loops_follow_davda54_s_release() -> None:
    before, new = pairs()["davda54/sam"]
    run = recorded("sam_adaptive_mlp_sgd").weights
    old = before.replace("rho=0.05", "rho=2.0, adaptive=True")
    assert apart(trained(old).path, run) < 1e-12
    asam = new.replace("lowland.SAM(rho=0.05)", "lowland.ASAM(rho=2.0, geometry=lowland.Adaptive(eta=0))")
    assert apart(trained(asam).path, run) < 1e-12


def test_both_loops_follow_the_momentum_sam_release() -> None:
    before, new = (c.replace("rho=0.3", "rho=3.0").replace("5e-4", "0.0") for c in pairs()["The Momentum-SAM release"])
    run = recorded("momentum_sam_rho3.0_wd0.0_mlp_sgd").weights
    assert apart(trained(before).final, run[-1]) < 1e-12
    assert apart(trained(new).path, run) < 1e-12


def test_every_loop_is_run() -> None:
    assert list(pairs()) == list(TOLERANCES)


@pytest.mark.parametrize("row", ROWS, ids=[f"{row.section}: {row.what}" for row in ROWS])
def test_rows(row: Row) -> None:
    check = CHECKS.get((row.section, row.what))
    if check is not None:
        check(row)
        return
    assert calls(row.after), "a row without a call needs an entry in CHECKS"
    before, method, tolerance = SECTIONS[row.section]
    old, new = before(row), after(row.after, method)
    assert apart(old.final, new.final) < tolerance
    if row.after.split("`")[1] != "SAM(rho=0.05)":  # what differs from the section's loop is seen
        assert apart(new.final, after("", method).final) > 1e-3 or "Engine(" in row.after


def test_every_check_has_a_row() -> None:
    assert set(CHECKS) <= {(row.section, row.what) for row in ROWS}
    assert set(ON_RANKS) <= {(row.section, row.what) for row in rows()}
    assert {row.section for row in ROWS} == set(SECTIONS)


def test_it_is_in_the_readme() -> None:
    assert "](docs/migrate.md)" in (ROOT / "README.md").read_text(encoding="utf-8")


def test_the_predictions_of_the_old_step_are_in_engine_aux() -> None:
    before, new = (trained(code, steps=3).names for code in pairs()["With a radius in proportion to the learning rate"])
    assert apart(before["predictions"].detach().numpy(), new["predictions"].numpy()) < 1e-12
    assert abs(float(before["loss"]) - float(new["loss"])) < 1e-12


def test_every_section_of_the_overview_is_there() -> None:
    assert len(re.findall(r"^\| \[", PAGE, flags=re.M)) == len(SECTIONS)
