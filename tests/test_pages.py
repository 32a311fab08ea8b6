"""Every page of the documentation is in the navigation, and its Python blocks run, here or in the page's own test."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

import lowland

ROOT = Path(__file__).parents[1]
PAGES = sorted((ROOT / "docs").glob("*.md"))
BLOCK = re.compile(r"^```py(?:thon)?(?: [^\n]*)?\n(.*?)^```", re.MULTILINE | re.DOTALL)
ELSEWHERE = {  # the test that runs a page's blocks
    "README.md": "test_readme.py",
    "CONTRIBUTING.md": "test_contributing.py",
    "federated.md": "flower/test_page.py",
    "integrations.md": "integrations/test_page.py",
    "methods.md": "test_readme.py",
    "migrate.md": "migrated/page.py",
    "own_method.md": "engine/test_plans.py",
    "own_task.md": "test_own_task_page.py",
    "parallel.md": "examples/test_parallel_examples.py",
    "sweeps.md": "test_sweeps_page.py",
}


def loss_fn(model: torch.nn.Module, batch: Any) -> torch.Tensor:
    return torch.nn.functional.cross_entropy(model(batch[0]), batch[1], reduction="none")


def around() -> dict[str, Any]:
    """What a block of a page may find: a model, its optimizer, its loss function, and batches."""
    model = torch.nn.Linear(4, 3)
    return {
        "__name__": "page",
        "torch": torch,
        "lowland": lowland,
        "Method": lowland.Method,
        "Probe": lowland.Probe,
        "dataclass": dataclass,
        "model": model,
        "optimizer": torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9),
        "loss_fn": loss_fn,
        "loader": [(torch.randn(8, 4), torch.randint(3, (8,))) for _ in range(2)],
    }


@pytest.mark.parametrize("path", [*PAGES, *sorted(ROOT.glob("*.md"))], ids=lambda path: path.name)
def test_python_blocks(path: Path) -> None:
    blocks = BLOCK.findall(path.read_text(encoding="utf-8"))
    for block in blocks:
        code = compile(block, path.name, "exec", dont_inherit=True)
        if path.name not in ELSEWHERE:
            names = around()
            exec(code, names)
            if "engine" in names:  # after the loop of the page, if it has one
                names["engine"].backward(names["loader"][0])
                assert names["engine"].step == (3 if "for batch in loader" in block else 1)


@pytest.mark.parametrize(("page", "test"), ELSEWHERE.items())
def test_pages_that_run_elsewhere_do(page: str, test: str) -> None:
    text = (ROOT / "tests" / test).read_text(encoding="utf-8")
    assert page in text
    assert "exec(compile(" in text or "importlib.import_module" in text


def entries(nav: Any) -> list[str]:
    """The pages of a navigation, in order."""
    if isinstance(nav, str):
        return [nav]
    return [page for entry in (nav.values() if isinstance(nav, dict) else nav) for page in entries(entry)]


def test_every_page_is_in_the_navigation() -> None:
    settings = yaml.load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"), Loader=yaml.BaseLoader)
    listed = entries(settings["nav"])
    assert len(set(listed)) == len(listed)
    assert {path.name for path in PAGES} <= set(listed)
