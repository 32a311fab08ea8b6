"""docs/migrate.md, read and run: its pairs of loops, the rows of its tables, on the problem of the recorded runs."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from official.files import Array, examples, recorded
from official.follow import model_of
from torch import Tensor, nn
from torch.nn.utils import parameters_to_vector

import lowland
from migrated import composer, davda54, gsam, msam, optax

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "migrate.md").read_text(encoding="utf-8")
STEPS = 40
START = {"mlp": "sam_mlp_sgd", "bn": "sam_bn_adamw"}  # recorded runs, whose networks and batches are used
STAND_INS = {
    "sam": davda54,
    "composer": composer,
    "composer.algorithms": composer,
    "composer.models": composer,
    "gsam": gsam,
    "gsam.scheduler": gsam,
    "optimizer": msam,
    "optimizer.msam": msam,
    "optimizer.adamW_msam": msam,
    "jax": optax,
    "optax": optax,
    "optax.contrib": optax,
}
PIECE = re.compile(r'^#+ (?P<heading>[^\n]+)$|^```python(?: title="(?P<side>\w+)")?\n(?P<code>.*?)^```$', re.M | re.S)


@dataclass(frozen=True)
class Row:
    """One row of a table of arguments."""

    section: str
    what: str
    before: str
    after: str


@dataclass(frozen=True)
class Trained:
    """What a loop leaves: weights before every step and at the end, (steps + 1, parameters); the network; all names."""

    path: Array
    model: nn.Module
    names: dict[str, Any]

    @property
    def final(self) -> Array:
        return self.path[-1]

    @property
    def statistics(self) -> tuple[Array, int]:
        """BatchNorm's running mean and variance, and the number of batches it has counted."""
        state = dict(self.model.named_buffers())
        return torch.cat([state["bn1.running_mean"], state["bn1.running_var"]]).numpy(), int(
            state["bn1.num_batches_tracked"]
        )


class Loader:
    """The batches of the recorded runs; it notes the weights whenever a batch is taken."""

    def __init__(self, model: nn.Module, steps: int) -> None:
        self.model, self.steps, self.path = model, steps, [weights(model)]

    def __len__(self) -> int:
        return self.steps

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        for step in range(self.steps):
            if step:
                self.path.append(weights(self.model))
            inputs, targets, _ = examples(recorded("sam_mlp_sgd").indices(step))
            yield inputs, targets


def weights(model: nn.Module) -> Array:
    return parameters_to_vector(model.parameters()).detach().numpy().copy()


def blocks() -> Iterator[tuple[str, str | None, str]]:
    """Of every Python block the heading above it, its side ("before", "after" or None) and its code."""
    heading = ""
    for found in PIECE.finditer(PAGE):
        heading = found["heading"] or heading
        if found["code"]:
            yield heading, found["side"], found["code"]


def pairs() -> dict[str, tuple[str, str]]:
    """The old loop and the new one, by the heading above them."""
    sides: dict[str, list[str]] = {}
    for heading, side, code in blocks():
        if side:
            sides.setdefault(heading, []).append(code)
            assert side == ("before", "after")[len(sides[heading]) - 1], heading
    return {heading: (before, after) for heading, (before, after) in sides.items()}


def rows() -> list[Row]:
    """All rows of the tables that are titled "Arguments of …"."""
    found = []
    for part in re.split(r"^##+ ", PAGE, flags=re.M):
        title, *lines = part.splitlines()
        if title.startswith("Arguments of "):
            cells = [line.strip("| ").split(" | ") for line in lines if line.startswith("| ")]
            found += [Row(title.removeprefix("Arguments of "), *row) for row in cells[1:]]
    return found


def trained(code: str, net: str = "mlp", steps: int = STEPS, **names: Any) -> Trained:
    """Run the page's common blocks and a loop, beside the stand-ins; the network starts as in the recorded runs."""
    model = model_of(recorded(START[net]))
    loader = Loader(model, steps)
    params = {name: p.detach().clone() for name, p in model.named_parameters()}
    space = {"__name__": "migrate", "model": model, "loader": loader, "params": params, "apply": _apply(model), **names}
    with pytest.MonkeyPatch.context() as patch:
        for name, module in STAND_INS.items():
            patch.setitem(sys.modules, name, module)
        for text in [*(c for _, side, c in blocks() if side is None), code]:
            exec(compile(text, "docs/migrate.md", "exec", dont_inherit=True), space)
    functional = space["params"] is not params  # as in jax, the loop has bound new ones
    end = parameters_to_vector(space["params"].values()).numpy() if functional else weights(model)
    return Trained(np.stack([*loader.path, end]), model, space)


def _apply(model: nn.Module) -> Any:
    return lambda params, inputs: torch.func.functional_call(model, params, (inputs,))


def apart(a: Array, b: Array) -> float:
    """The largest absolute difference."""
    assert a.shape == b.shape
    return float(np.abs(a - b).max())


def calls(cell: str) -> dict[str, str]:
    """The calls in a cell by what they make: "optimizer", "options" or "method"."""
    found = {}
    for name, inside in re.findall(r"`(\w+)\(([^`]*)\)`", cell):
        kind = {"SGD": "optimizer", "AdamW": "optimizer", "Engine": "options", "Trainer": "options"}.get(name, "method")
        found[kind] = f"{name}({inside})"
    return found


LOOP = """
for batch in loader:
    loss = engine.backward(batch)
    optimizer.step()
    optimizer.zero_grad()
"""


def after(cell: str, method: str, **options: Any) -> Trained:
    """The loop that a row's last cell speaks of; ``method`` is what it has where the cell names none."""
    made = {"method": method, "optimizer": "SGD(…)", "options": "Engine(…)", **calls(cell)}
    optimizer = made["optimizer"].replace("…", "model.parameters(), lr=0.1, momentum=0.9")
    engine = made["options"].replace("…", f"{made['method']}, model, optimizer, loss_fn")
    names = {**{name: getattr(lowland, name) for name in lowland.__all__}, "SGD": torch.optim.SGD, "T": STEPS}
    return trained(f"optimizer = {optimizer}\nengine = {engine}\n{LOOP}", **names, **options)
