"""The closed form beside the measured steps, by hand."""

from __future__ import annotations

import pytest

from lowland.bench.two_processes import closed_form
from lowland.bench.two_processes.case import Case
from lowland.executors.mesh.messages import BUCKET


class Sized(Case):
    """A model with gradients of four buckets, 4 MiB."""

    def bytes(self) -> int:
        return 4 * BUCKET


CASE = Sized("mlp", 8)
MEDIANS = {"plain-twice": 90.0, "half-twice": 60.0, "plain": 75.0}  # 30 ms, and 7.5 ms for each of 8 examples
MBIT = 4 * BUCKET * 8 / 1e6 / 0.08  # a gradient takes 80 ms


def test_without_a_link_sampa_saves_the_base_of_a_gradient() -> None:
    found = closed_form.times(CASE, MEDIANS)
    ms = {"dp-sam": 120, "sampa": 90}
    assert found == {"base_ms": 30, "nothing": ms, "all": ms}


def test_with_a_link() -> None:
    found = closed_form.times(CASE, MEDIANS, mbit=MBIT)
    assert found["nothing"] == pytest.approx({"dp-sam": 2 * (60 + 80), "sampa": 90 + 80})
    # a backward of 40 and of 60 ms has room for as much of the first three messages
    assert found["all"] == pytest.approx({"dp-sam": 2 * (60 + 80 - 40), "sampa": 90 + 80 - 60})
    late = closed_form.times(CASE, MEDIANS, mbit=MBIT, delay=5.0)  # in each of four messages, twice in an all-reduce
    assert late["nothing"] == pytest.approx({"dp-sam": 2 * (60 + 80 + 4 * 2 * 5), "sampa": 90 + 80 + 4 * 5})


def test_a_wide_link_hides_all_but_the_last_message() -> None:
    found = closed_form.times(CASE, MEDIANS, mbit=4 * MBIT)
    assert found["all"] == pytest.approx({"dp-sam": 2 * (60 + 5), "sampa": 90 + 5})


def test_level_with_sam_on_one_process() -> None:
    # SAM takes 2 * 75 ms on one process; SAMPa's 90 ms leave 60 for the exchange, of which 60 hide or none
    found = closed_form.level(CASE, MEDIANS)
    assert found["nothing"] == pytest.approx([MBIT * 80 / 60], rel=1e-2)
    assert found["all"] == pytest.approx([MBIT * 80 / 120], rel=1e-2)
    # a gradient that is slowed down to twice its time by a busy neighbor: a step of SAMPa is never shorter
    assert closed_form.level(CASE, {**MEDIANS, "plain": 45.0}) == {"nothing": [], "all": []}
