"""The generated pages of the documentation: what they say is what is measured, and their code runs."""

from __future__ import annotations

import re
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch
from docsite import api_pages, markup, method_pages, quotes, repository
from docsite.figures import costs_figure, steps_figure
from docsite.trace import steps_of, trace

import lowland
from lowland.methods import METHODS
from lowland.planner.costs import STEPS, measure, specimen

ROOT = Path(__file__).parents[2]
HEADINGS = ["Cost", "When to use it", "When not to use it", "In code", "Fields", "Invariants", "Reference"]


# docs/results.md was measured before lowland had them.
UNMEASURED = {"functional-sam", "le-sam", "unified-sam", "vasso", "xsam", "logits-sam"}


def text_of(key: str) -> str:
    return "\n\n".join(method_pages.page(key))


@pytest.mark.parametrize("key", METHODS)
def test_the_passes_of_the_figure_are_those_that_are_counted(key: str) -> None:
    costs = measure(specimen(key))
    passes = [one for step in trace(key) for together in step for one in together]
    gradients = [one for one in passes if one.tensors]
    assert sum(one.examples for one in gradients) / STEPS == pytest.approx(costs.gradients)
    assert sum(one.examples * one.tensors for one in gradients) / STEPS == pytest.approx(costs.weights)
    assert sum(one.examples for one in passes if not one.tensors) / STEPS == pytest.approx(costs.forwards)
    first, steps = steps_of(key)
    assert steps == trace(key)[first - 1 : first + 9]


def test_the_figure_shows_every_kind_of_step() -> None:
    for key in ("vsam", "looksam", "rst", "ae-sam", "late"):
        _, steps = steps_of(key)
        assert len({len(step) for step in steps}) == 2, key
    assert all(len(together) == 2 for step in steps_of("sampa")[1] for together in step)


@pytest.mark.parametrize("key", METHODS)
def test_a_method_s_page_has_all_of_it(key: str) -> None:
    text = text_of(key)
    headings = re.findall(r"^## (.*)$", text, flags=re.MULTILINE)
    assert [heading for heading in headings if heading in HEADINGS] == HEADINGS
    assert f"{{ #lowland.{METHODS[key].__name__} " in text
    assert "``" not in text.replace("```", "")
    assert ":class:" not in text
    costs = measure(specimen(key))
    assert f"| of them one after the other | {costs.sequential:.2f} |" in text
    assert text.count("<svg") == 1
    assert "\n" not in steps_figure(key)  # Markdown would end the HTML there
    assert ("## Measured against plain training" in text) == (key != "plain" and key not in UNMEASURED)


@pytest.mark.parametrize("key", METHODS)
def test_a_method_s_example_runs(key: str) -> None:
    (code,) = re.findall(r"^```python\n(.*?)^```", text_of(key), flags=re.MULTILINE | re.DOTALL)
    model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.LayerNorm(8), torch.nn.Linear(8, 3))
    dataset = torch.utils.data.TensorDataset(torch.randn(32, 4), torch.randint(3, (32,)))

    def loss_fn(model: torch.nn.Module, batch: Any) -> torch.Tensor:
        return torch.nn.functional.cross_entropy(model(batch[0]), batch[1], reduction="none")

    names: dict[str, Any] = {
        "torch": torch, "lowland": lowland, "model": model, "dataset": dataset, "loss_fn": loss_fn
    }  # fmt: skip
    exec(compile(code, f"methods/{key}.md", "exec"), names)
    engine = names["engine"]
    engine.progress = 0.5
    assert engine.backward((*dataset[:8], torch.arange(8))).isfinite()
    assert type(engine.method) is METHODS[key]


@pytest.mark.slow
def test_the_figure_of_costs_names_all_methods() -> None:
    figure = costs_figure()
    assert all(f">{key}<" in figure for key in METHODS)


def test_the_reference_is_complete() -> None:
    assert not api_pages.missing()
    names = [name for page in api_pages.PAGES.values() for name in page.names]
    assert len(set(names)) == len(names)
    for name in names:
        module, _, attribute = name.rpartition(".")
        if name == "lowland.parallel":  # a module that `import lowland` does not load
            assert import_module(name)
        elif not name.startswith("lowland.integrations."):
            assert hasattr(import_module(module), attribute), name


def test_rows_are_quoted_from_the_results() -> None:
    page = (ROOT / "docs" / "when_not.md").read_text(encoding="utf-8")
    shown = quotes.quoted(page)
    assert page.count("<!-- quote:") == 3
    assert "<!--" not in shown
    results = quotes.RESULTS.read_text(encoding="utf-8")
    for row in re.findall(r"^\| `.*\|$", shown, flags=re.MULTILINE):
        key, *values = quotes.cells(row)
        assert any(set(values) <= set(quotes.cells(line)) for line in results.splitlines() if f"| {key} |" in line)
    equal = next(table for table, _ in quotes.of_method("wsam") if table.budget == "Equal gradients")
    assert quotes.cells(equal.rows["wsam"])[2] == "96.08 ± 0.83"
    assert equal.link == "results.md#the-whole-family-on-wrong-labels"


def test_a_quotation_that_finds_nothing_is_an_error() -> None:
    with pytest.raises(ValueError, match="not enough values"):
        quotes.quoted("<!-- quote: No such heading | | sam -->")


def test_links_of_the_readme_lead_into_the_site() -> None:
    pages = dict(repository.pages())
    introduction = pages["introduction.md"]
    assert introduction.startswith("# Introduction\n")
    assert "](docs/" not in introduction
    assert "(results.md)" in introduction
    assert "(contributing.md)" in introduction
    assert "](LICENSE)" not in introduction
    assert "![Paired gain" in introduction


@pytest.mark.parametrize(("page", "before", "after"), [
    ("results.md", "| `sam` | 5 |", "| [`sam`](methods/sam.md) | 5 |"),
    ("api/x.md", "| `sam` | 5 |", "| [`sam`](../methods/sam.md) | 5 |"),
    ("results.md", "with `sam` | `rho` |", "with `sam` | `rho` |"),
    ("hardware.md", "with `sam` and `rho`", "with [`sam`](methods/sam.md) and `rho`"),
    ("hardware.md", "[`sam`](x.md)", "[`sam`](x.md)"),
    ("hardware.md", "```sh\n`sam`\n```", "```sh\n`sam`\n```"),
])  # fmt: skip
def test_methods_are_linked(page: str, before: str, after: str) -> None:
    assert repository.link_methods(before, page) == after


def test_docstrings_become_markdown() -> None:
    text = markup.block(
        "Title with ``a | b``.\n\nSee :meth:`lowland.Method.plan`, :class:`Nothing`::\n\n    d = g\n\n"
        "Args:\n    x: At ``w``; see :class:`~lowland.core.probe.Probe`.\n    *more: Others, a*b*c.\n\n"
        "Use: Here.\n\nExample:\n    >>> 2 * 3 < 7\n    True"
    )
    assert text == (
        "Title with `a | b`.\n\nSee [`Method.plan`][lowland.Method.plan], `Nothing`:\n\n```text\nd = g\n```\n\n"
        "Args:\n    x: At `w`; see [`Probe`][lowland.Probe].\n    *more: Others, a\\*b\\*c.\n\n"
        "**Use.** Here.\n\nExamples:\n    >>> 2 * 3 < 7\n    True"
    )
