from __future__ import annotations

import pytest

from lowland.lab.costs import measure
from lowland.methods import make


@pytest.mark.parametrize(("method", "gradients", "sequential", "reduces", "resident"), [
    ("plain", 1, 1, 1, 0),
    ("sam", 2, 2, 2, 0),
    ("sampa", 2, 1, 2, 1),
    ("looksam:k=5", 1.2, 1.2, 1.2, 1),
    ("looksam:k=2", 1.5, 1.5, 1.5, 1),
])  # fmt: skip
def test_costs_are_those_of_the_papers(method, gradients, sequential, reduces, resident):
    costs = measure(make(method))
    found = (costs.gradients, costs.sequential, costs.reduces, costs.resident)
    assert found == pytest.approx((gradients, sequential, reduces, resident))


def test_the_peak_is_beyond_plain():
    assert measure(make("plain")).peak == 0
    assert measure(make("sam")).peak == pytest.approx(1, abs=0.05)  # the saved weights


def test_a_full_window_costs_what_its_warmup_costs():
    assert measure(make("arsam:warmup=100")).gradients == pytest.approx(2)
