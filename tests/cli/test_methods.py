from __future__ import annotations

import io
from dataclasses import dataclass

import pytest
from rich.console import Console

from lowland.cli.methods import Methods, by_cost, gradients, page, paper
from lowland.core.errors import UnknownNameError
from lowland.core.probe import Probe
from lowland.methods import METHODS
from lowland.methods.base import Method
from lowland.planner.costs import Costs


def shown(width: int, name: str | None = None) -> list[str]:
    console = Console(file=io.StringIO(), width=width)
    assert Methods(name=name).run(console, []) == 0
    return console.file.getvalue().splitlines()


@pytest.mark.slow
@pytest.mark.parametrize("width", [80, 110, 120])
def test_all_methods_fit_the_terminal(width):
    lines = shown(width)
    assert max(map(len, lines)) <= width
    text = "\n".join(lines)
    assert "…" not in text
    rows = lines[: next(i for i, line in enumerate(lines) if line.startswith("The cheapest methods come first"))]
    first = [line.split()[0] for line in rows if line.strip()]
    assert [word for word in first if word in METHODS] == list(by_cost())
    assert ("rho=0.05, k=5, alpha=0.7," in text) == (width >= 100)
    for told in ("Liu et al. 2022,", "arXiv 2203.02714", "1.00 +1 fwd", "1.50 +1 fwd", "(1.1 of weights)"):
        assert told in text


@pytest.mark.slow
@pytest.mark.parametrize("width", [40, 60, 79])
def test_narrow_terminals_have_names_and_gradients(width):
    lines = shown(width)
    assert max(map(len, lines)) <= width
    count = next(i for i, line in enumerate(lines) if line.startswith("The cheapest methods come first"))
    text = "\n".join(lines[:count])
    assert "…" not in text
    assert [line.split()[0] for line in text.splitlines() if line.split()[:1] and line.split()[0] in METHODS] == list(
        by_cost()
    )
    assert "(1.1 of weights)" in text


def test_the_cheapest_come_first():
    found = by_cost()
    assert set(found) == set(METHODS)
    order = list(found)
    assert order[:3] == ["plain", "ausam", "momentum-sam"]  # one gradient each, in the order of METHODS
    assert order.index("async-sam") < order.index("k-sam") < order.index("esam")  # 1.25, 1.33, 1.83
    assert order.index("sampa") < order.index("sam")  # two gradients each, but side by side
    prices = [costs.price for costs in found.values()]
    assert prices == sorted(prices)


@pytest.mark.parametrize(("told", "costs"), [
    ("1.00", (1, 0, 1)),
    ("1.00 +1 fwd", (1, 1, 1)),
    ("2.00 (0.4 of weights)", (2, 0, 0.4)),
    ("1.50 +0.5 fwd (1.1 of weights)", (1.5, 0.5, 1.1)),
    ("1.00", (1, 0.001, 0.999)),  # rounding is no forward pass
])  # fmt: skip
def test_gradients_in_words(told, costs):
    total, forwards, weights = costs
    rest = {"sequential": 1, "reduces": 1, "resident": 0, "peak": 0}
    assert gradients(Costs(gradients=total, forwards=forwards, weights=weights, **rest)) == told


@pytest.mark.parametrize("key", METHODS)
@pytest.mark.parametrize("width", [60, 100])
def test_a_page_has_all_of_it(key, width):
    lines = [line.plain for line in page(key, width)]
    assert max(map(len, lines)) <= width
    assert lines[0] == f"{key}: {METHODS[key].__name__}"
    headings = [line for line in lines if line.endswith(":") and line[:1].isupper()]
    wanted = [
        "Fields:",
        "Measured cost:",
        "Cost, by its rule:",
        "Invariants:",
        "When to use it:",
        "When not to use it:",
        "Differences from the paper or its code:",
        "Reference:",
    ]
    assert [h for h in headings if h in wanted] == [w for w in wanted if key != "plain" or "Differences" not in w]


def test_a_page_in_detail():
    text = "\n".join(shown(80, "looksam"))
    assert "every k-th step:  g_s = g(w + rho * g/||g||)" in text
    assert "\n    k = 5                   Steps from one SAM step to the next, >= 1; 1 is SAM." in text
    assert "1.20 gradients per step in total, 1.20 one after another" in text
    assert "k = 1 is SAM" in text
    assert "CVPR 2022, arXiv 2203.02714." in text
    assert "with start=0.5;" in " ".join(" ".join(shown(80, "late")).split())
    assert "inner = sam" in "\n".join(shown(80, "stable-sam"))


def test_papers_in_short():
    assert paper(METHODS["plain"]) == "Robbins, Monro 1951"
    assert paper(METHODS["arsam"]) == "Deng, Pang 2025, arXiv 2510.03763"
    assert all("arXiv" in paper(kind) for key, kind in METHODS.items() if key != "plain")


def test_an_unknown_name():
    with pytest.raises(UnknownNameError, match="did you mean 'sampa'"):
        shown(80, "sanpa")


@dataclass(frozen=True, kw_only=True)
class Bare(Method):
    def plan(self, engine, batch):
        here = yield Probe(batch)
        return here.loss, here.grad


@dataclass(frozen=True, kw_only=True)
class Needy(Bare):
    """One sentence."""

    size: int


def test_methods_of_one_s_own_are_listed_with_what_there_is(monkeypatch):
    monkeypatch.setitem(METHODS, "bare", Bare)
    monkeypatch.setitem(METHODS, "needy", Needy)
    for width in (80, 120):
        lines = "\n".join(shown(width))
        assert "bare" in lines
        assert "needy" in lines
        assert "no reference" in lines
    assert "The docstring of Bare has no section Cost, Invariants, Use, Avoid, Reference." in "\n".join(
        shown(100, "bare")
    )
    assert "Not measured" in "\n".join(shown(100, "needy"))
