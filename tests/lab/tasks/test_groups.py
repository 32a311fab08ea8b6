from __future__ import annotations

from torch import nn

from lowland.lab.models.gpt import gpt
from lowland.lab.recipe import Recipe, make_optimizer
from lowland.lab.tasks.groups import without_decay_of_vectors


def test_matrices_decay_and_vectors_do_not() -> None:
    model = gpt("gpt-nano", vocab=9, context=8, tied=True, dropout=0.0)
    groups = make_optimizer(Recipe(optimizer="adamw", weight_decay=0.3), without_decay_of_vectors(model)).param_groups
    assert [group["weight_decay"] for group in groups] == [0.3, 0.0]
    assert {p.ndim for p in groups[0]["params"]} == {2}
    assert {p.ndim for p in groups[1]["params"]} == {1}
    named = {id(p) for group in groups for p in group["params"]}
    assert named == {id(p) for p in model.parameters()}  # a tied matrix once


def test_frozen_parameters_and_empty_groups() -> None:
    model = nn.Sequential(nn.Linear(2, 2, bias=False), nn.LayerNorm(2))
    model[1].requires_grad_(False)
    (group,) = without_decay_of_vectors(model)
    assert group["params"] == [model[0].weight]
    assert without_decay_of_vectors(nn.Sequential(nn.Flatten())) == []
