"""O1, and which parameters SAM-ON perturbs.

Float64 throughout. What is equal in exact arithmetic agrees here to `SAME`: rounding times a few dozen steps.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch
from reference.attacks import points_of
from reference.cases import BASES, MOMENTUM, PROBLEM, SAME, path_of, some
from reference.drive import Run, assert_differ, assert_same
from reference.model import MLP
from reference.normalized import Normalized, OnlyNormalization
from reference.vectors import norm
from torch import nn

import lowland
from lowland import SAM, SAMON, Engine, Late, Plain
from lowland.core.errors import ArgumentError, ParameterError
from lowland.core.geometry import L2, Adaptive, Layerwise

NORMAL = Normalized()


def all_of_them(module, name, parameter):
    return True


@pytest.mark.parametrize("base", BASES)
@pytest.mark.parametrize("problem", [PROBLEM, NORMAL], ids=["none by type", "some by type"])
def test_o1_with_all_tensors_selected_it_is_sam(problem, base):
    batches = some(problem=problem)
    path = path_of(SAMON(rho=0.3, extra=all_of_them), batches, problem=problem, optimizer=BASES[base])
    assert_same(path, path_of(SAM(rho=0.3), batches, problem=problem, optimizer=BASES[base]), SAME)


def test_o1_where_there_is_nothing_but_normalization_it_is_sam():
    problem = OnlyNormalization()
    batches = some(problem=problem)
    path = path_of(SAMON(rho=0.3), batches, problem=problem)
    assert_same(path, path_of(SAM(rho=0.3), batches, problem=problem), SAME)


@pytest.mark.parametrize("geometry", [L2(), Adaptive(), Layerwise()], ids=lambda g: type(g).__name__)
def test_o1_in_every_geometry(geometry):
    batches = some(problem=NORMAL)
    path = path_of(SAMON(rho=0.3, extra=all_of_them, geometry=geometry), batches, problem=NORMAL)
    assert_same(path, path_of(SAM(rho=0.3, geometry=geometry), batches, problem=NORMAL), SAME)


def test_only_normalization_layers_move_and_the_norm_is_theirs():
    run = Run(NORMAL, NORMAL.weights(1), SAMON(rho=0.3))
    g = NORMAL.gradient(run.w, NORMAL.batch(0))
    here, there = points_of(run, NORMAL.batch(0), problem=NORMAL)
    assert norm(here) == 0.0
    assert [bool(x.any()) for x in there] == NORMAL.normalizes
    chosen = [x * c for x, c in zip(g, NORMAL.normalizes, strict=True)]
    assert_same([there], [[0.3 * x / norm(chosen) for x in chosen]], SAME)


def test_the_first_pass_differentiates_only_what_is_perturbed():
    run = Run(NORMAL, NORMAL.weights(1), SAMON(rho=0.3))
    run.step(NORMAL.batch(0), 0.1)
    assert run.engine.cost.gradients == 2
    assert run.engine.cost.weights == pytest.approx(1 + 2 / 6)
    assert all(x.any() for x in run.grad)  # the second pass differentiates all


LAYERS = {
    "BatchNorm1d": (nn.BatchNorm1d(4), (6, 4)),
    "BatchNorm2d": (nn.BatchNorm2d(4), (6, 4, 2, 2)),
    "SyncBatchNorm": (nn.SyncBatchNorm(4), None),
    "LayerNorm": (nn.LayerNorm(4), (6, 4)),
    "GroupNorm": (nn.GroupNorm(2, 4), (6, 4)),
    "InstanceNorm1d": (nn.InstanceNorm1d(4, affine=True), (6, 4, 3)),
    "InstanceNorm2d": (nn.InstanceNorm2d(4, affine=True), (6, 4, 3, 3)),
    "RMSNorm": (nn.RMSNorm(4), (6, 4)),
    "subclass": (type("Mine", (nn.LayerNorm,), {})(4), (6, 4)),
}


@pytest.mark.parametrize("key", LAYERS)
def test_normalization_layers_are_known_by_type(key):
    layer, shape = LAYERS[key]
    layer = layer.double()
    model = nn.Sequential(layer, nn.Identity() if shape is None else nn.Flatten()).double()
    model.register_parameter("other", nn.Parameter(torch.ones(2, dtype=torch.float64)))
    engine = Engine(SAMON(), model, torch.optim.SGD(model.parameters(), lr=0.1), None)
    plan = engine.method.plan(engine, torch.zeros(6, 4))
    wrt = dict(zip(engine.names, next(plan).wrt, strict=True))
    plan.close()
    assert wrt == {name: name != "other" for name in wrt}
    assert len(wrt) == 1 + len(list(layer.parameters()))


def test_names_do_not_matter():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.bn_norm = nn.Linear(5, 4)
            self.scale = nn.LayerNorm(4)

        def forward(self, x):
            return self.scale(self.bn_norm(x))

    model = Net().double()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    engine = Engine(SAMON(), model, optimizer, lambda m, b: m(b).square().mean(1))
    wrt = next(engine.method.plan(engine, torch.zeros(6, 5))).wrt
    assert dict(zip(engine.names, wrt, strict=True)) == {
        "bn_norm.weight": False,
        "bn_norm.bias": False,
        "scale.weight": True,
        "scale.bias": True,
    }


def test_a_predicate_adds_others_and_is_not_asked_at_every_step():
    asked = []

    def last_bias(module, name, parameter):
        asked.append(name)
        return isinstance(module, nn.Linear) and name == "3.bias"

    run = Run(NORMAL, NORMAL.weights(1), SAMON(rho=0.3, extra=last_bias))
    _, there = points_of(run, NORMAL.batch(0), problem=NORMAL)
    before = len(asked)
    run.step(NORMAL.batch(1), 0.1)
    assert [bool(x.any()) for x in there] == [False, False, True, True, False, True]
    assert len(asked) == before
    assert set(asked) == {"0.bias", "0.weight", "3.bias", "3.weight"}


@pytest.mark.parametrize("method", [SAMON(), Late(inner=SAMON(), start=9)], ids=["itself", "inside"])
def test_a_model_without_normalization_is_refused(method):
    with pytest.raises(ParameterError, match=r"must have a normalization layer .* none .*; add yours with extra=…, or"):
        Run(PROBLEM, PROBLEM.weights(1), method)


def test_frozen_normalization_is_none():
    class Frozen(Normalized):
        def module(self, w):
            model = super().module(w)
            model[1].requires_grad_(False)
            return model

    with pytest.raises(ParameterError, match="has none that is trained"):
        Run(Frozen(), NORMAL.weights(1), SAMON())


def layers_at(rho):
    def groups(model):
        rest = [*model[0].parameters(), *model[3].parameters()]
        return [{"params": model[1].parameters(), "rho": rho}, {"params": rest}]

    return groups


def test_normalization_in_a_group_without_radius_leaves_the_base_optimizer():
    paths = [
        path_of(method, some(problem=NORMAL), problem=NORMAL, groups=layers_at(0.0)) for method in (SAMON(), Plain())
    ]
    assert_same(*paths, SAME)


def test_a_group_s_radius_may_become_zero_and_come_back():
    run = Run(NORMAL, NORMAL.weights(1), SAMON(), groups=layers_at(0.3))
    for radius in (0.3, 0.0, 0.2):
        run.optimizer.param_groups[0]["rho"] = radius
        here, there = points_of(run, NORMAL.batch(0), problem=NORMAL)
        assert norm(here) == 0.0
        assert norm(there) == pytest.approx(radius, rel=1e-9)


def test_batch_norm_statistics_are_those_of_the_unperturbed_pass():
    problem = Normalized(kind="batch")
    one, other = (Run(problem, problem.weights(1), method, MOMENTUM) for method in (SAMON(rho=2.0), SAM(rho=0.0)))
    for run in (one, other):
        run.step(problem.batch(0), 0.1)
    assert one.model[1].num_batches_tracked.item() == 1
    assert torch.equal(one.model[1].running_mean, other.model[1].running_mean)
    assert_differ([one.grad], [other.grad])


def test_a_geometry_that_selects_is_refused():
    with pytest.raises(ArgumentError, match=r"geometry must not select parameters of its own, but is L2\(select=<"):
        SAMON(geometry=L2(select=all_of_them))


def test_a_predicate_that_is_none_is_refused():
    with pytest.raises(ArgumentError, match="extra must be"):
        SAMON(extra="bn")


def test_without_affine_parameters_there_is_nothing_to_perturb():
    class Bare(MLP):
        def module(self, w):
            layers = nn.Sequential(*super().module(w))
            layers.insert(1, nn.LayerNorm(self.hidden, elementwise_affine=False))
            return layers

    with pytest.raises(ParameterError, match="must have a normalization layer"):
        Run(Bare(), PROBLEM.weights(1), SAMON())


def test_a_zero_gradient_is_no_perturbation():
    run = Run(NORMAL, NORMAL.weights(1), SAMON(rho=0.3))
    run.engine.loss_fn = run.engine.work.loss_fn = lambda model, batch: 0.0 * NORMAL.loss_fn(model, batch)
    run.step(NORMAL.batch(0), 0.1)
    assert_same([run.w], [NORMAL.weights(1)], 0.0)
    assert all(np.isfinite(x).all() for x in run.grad)


def test_predicates_see_the_same_names_when_an_engine_is_made_and_at_every_step():
    model = torch.compile(nn.Sequential(nn.Linear(4, 3), nn.Linear(3, 2)), backend="eager")
    engine = lowland.Engine(
        SAMON(extra=lambda module, name, parameter: name == "1.bias"),
        model,
        torch.optim.SGD(model.parameters(), lr=0.1),
    )
    assert engine.method._chosen(engine) == [False, False, False, True]
    with pytest.raises(ParameterError, match="must have a normalization layer"):
        lowland.Engine(
            SAMON(extra=lambda module, name, parameter: name.startswith("_orig_mod")),
            model,
            torch.optim.SGD(model.parameters(), lr=0.1),
        )
