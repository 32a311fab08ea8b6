from __future__ import annotations

import pytest
import torch
from conformance import TEXTS, method_of
from torch import nn

from lowland import SAM, Criterion, Engine, LookSAM
from lowland.core.errors import ArgumentError, ParameterError
from lowland.core.geometry import L2, Adaptive, Layerwise
from lowland.engine.parameters import Parameters


def network(**options) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4, **options), nn.BatchNorm1d(4, **options), nn.Linear(4, 2, **options))


def sgd(params) -> torch.optim.SGD:
    return torch.optim.SGD(params, lr=0.1)


def split(model: nn.Module, **second) -> torch.optim.SGD:
    """The first four parameters in one group, the last two in another."""
    params = list(model.parameters())
    return sgd([{"params": params[:4]}, {"params": params[4:], **second}])


def radii(model, optimizer, value=0.05, geometry=None):
    return Parameters(model, [optimizer]).radii(value, geometry or L2())


# Radii


def test_one_radius_for_all_is_a_number():
    model = network()
    assert radii(model, split(model)) == 0.05
    assert radii(model, split(model, rho=None)) == 0.05
    assert radii(model, split(model, rho=0.05)) == 0.05


def test_a_group_s_rho_overrides_whatever_the_optimizer_s_order():
    model = network()
    params = list(model.parameters())
    optimizer = sgd([{"params": params[:1:-1], "rho": 0.2}, {"params": params[:2], "rho": 0}])
    assert radii(model, optimizer) == [0.0, 0.0, 0.2, 0.2, 0.2, 0.2]


def test_a_group_s_rho_is_read_at_every_step():
    model = network()
    optimizer = split(model, rho=0.2)
    parameters = Parameters(model, [optimizer])
    optimizer.param_groups[1]["rho"] = 0.3
    assert parameters.radii(0.05, L2()) == [0.05] * 4 + [0.3] * 2


def test_adadelta_s_own_rho_is_no_radius():
    model = network()
    optimizer = torch.optim.Adadelta(model.parameters(), rho=0.9)
    assert radii(model, optimizer) == 0.05


def test_select_excludes_and_sees_module_name_and_tensor():
    model, seen = network(), []

    def select(module, name, parameter):
        seen.append((type(module), name, parameter.shape))
        return isinstance(module, nn.BatchNorm1d)

    assert radii(model, sgd(model.parameters()), geometry=L2(select=select)) == [0.0, 0.0, 0.05, 0.05, 0.0, 0.0]
    assert seen[0] == (nn.Linear, "0.weight", (4, 3))
    assert seen[2] == (nn.BatchNorm1d, "1.weight", (4,))


def test_select_and_group_rho_go_together():
    model = network()
    geometry = Adaptive(select=lambda module, name, parameter: name.endswith("weight"))
    assert radii(model, split(model, rho=0.2), geometry=geometry) == [0.05, 0.0, 0.05, 0.0, 0.2, 0.0]


def test_select_is_asked_once():
    model, asked = network(), []
    optimizer = sgd(model.parameters())
    parameters, geometry = Parameters(model, [optimizer]), L2(select=lambda *args: bool(asked.append(1)) or True)
    for _ in range(3):
        parameters.radii(0.05, geometry)
    assert len(asked) == 6


@pytest.mark.parametrize("rho", [-0.1, float("nan"), "0.1", True])
def test_a_bad_group_rho_is_refused(rho):
    model = network()
    optimizer = split(model, rho=rho)
    with pytest.raises(ArgumentError, match=r'param_groups\[1\]\["rho"\] must be a number >= 0, but is .*; rho=0'):
        radii(model, optimizer)


@pytest.mark.parametrize("geometry", [L2(), Adaptive(), Layerwise()])
def test_excluded_parameters_do_not_move_in_a_step(geometry):
    model = network()
    optimizer = split(model, rho=0.0)
    start, seen = [p.detach().clone() for p in model.parameters()], []

    def loss_fn(model, batch):
        seen.append([not torch.equal(p, s) for p, s in zip(model.parameters(), start, strict=True)])
        return model(batch).square().sum(1)

    Engine(SAM(rho=0.5, geometry=geometry), model, optimizer, loss_fn).backward(torch.randn(6, 3))
    assert seen[0] == [False] * 6
    assert seen[1][4:] == [False] * 2
    # The bias under BatchNorm has no gradient but rounding, so it is not looked at.
    assert [seen[1][i] for i in (0, 2, 3)] == [True] * 3


# Names


def test_compiled_models_keep_plain_names():
    model = network()
    plain = list(dict(model.named_parameters()))
    compiled = torch.compile(model, backend="eager")
    optimizer = sgd(compiled.parameters())
    parameters = Parameters(compiled, [optimizer])
    assert parameters.names == plain
    only_norms = L2(select=lambda module, name, parameter: isinstance(module, nn.BatchNorm1d))
    assert parameters.radii(1.0, only_norms) == [0.0, 0.0, 1.0, 1.0, 0.0, 0.0]


def test_compiled_submodules_keep_plain_names():
    model = network()
    plain = list(dict(model.named_parameters()))
    model[0] = torch.compile(model[0], backend="eager")
    assert Parameters(model, [sgd(model.parameters())]).names == plain


def test_data_parallel_prefixes_are_dropped():
    model = nn.DataParallel(network())
    assert Parameters(model, [sgd(model.parameters())]).names == list(dict(model.module.named_parameters()))


class Colliding(nn.Module):
    """A submodule that is really called "module", and a twin of its weight at the top."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(3))
        self.module = nn.Module()
        self.module.weight = nn.Parameter(torch.ones(3))

    def forward(self, x):
        return x * self.weight + self.module.weight.square()


@pytest.mark.parametrize("wrap", [lambda model: model, nn.DataParallel])
def test_names_stay_unique(wrap):
    model = wrap(Colliding())
    assert Parameters(model, [sgd(model.parameters())]).names == ["weight", "module.weight"]


def test_states_of_parameters_with_almost_equal_names_are_not_mixed_up():
    model = Colliding()
    engine = Engine(LookSAM(), model, sgd(model.parameters()), lambda m, x: m(x).pow(4).sum(1))
    engine.backward(torch.tensor([[1.0, 2.0, 3.0]]))
    before = engine.memory["g_v"]
    assert not torch.equal(*before)
    engine.load_state_dict(engine.state_dict())
    assert all(torch.equal(a, b) for a, b in zip(engine.memory["g_v"], before, strict=True))


def test_tied_parameters_count_once():
    model = nn.ModuleList([nn.Linear(2, 2), nn.Linear(2, 2)])
    model[1].weight = model[0].weight
    assert Parameters(model, [sgd(model.parameters())]).names == ["0.weight", "0.bias", "1.bias"]


def test_frozen_parameters_are_left_out_in_and_outside_the_optimizer():
    for inside in (True, False):
        model = network()
        model[0].requires_grad_(False)
        optimizer = sgd(model.parameters() if inside else [p for p in model.parameters() if p.requires_grad])
        assert Parameters(model, [optimizer]).names == ["1.weight", "1.bias", "2.weight", "2.bias"]


NAMED = {"logits-sam": "logits-sam:head=2.weight"}  # the last linear layer is not used here


# The others want targets or indices, or let the first layer rest; test_all.py has the same for every method.
@pytest.mark.parametrize("text", [t for key, t in (TEXTS | NAMED).items() if key not in ("ausam", "bisam", "sl-sam")])
def test_unused_parameters_keep_no_gradient_and_do_not_decay(text):
    model = network()
    model.unused = nn.Linear(2, 2)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=0.5)
    loss_fn = Criterion(lambda m, x: m[2](m[0](x)), lambda out, x: out.square().sum(1))
    engine = Engine(method_of(text), model, optimizer, loss_fn)
    before = model.unused.weight.detach().clone()
    for _ in range(3):
        engine.backward(torch.randn(4, 3))
        assert model.unused.weight.grad is None
        assert model[0].weight.grad is not None
        optimizer.step()
    assert torch.equal(model.unused.weight, before)


# What is refused


def refused(model, optimizer, message, **options):
    with pytest.raises(ParameterError, match=message):
        Engine(SAM(), model, optimizer, **options)


def test_missing_parameters_are_named():
    model = network()
    message = r"must be in the optimizer, but 1.weight, 1.bias, 2.weight and 1 more are missing; add .*rho=0.*freeze"
    refused(model, sgd(model[0].parameters()), message)
    refused(model, sgd(list(model.parameters())[:-1]), r"but 2.bias is missing; add")


def test_foreign_parameters_are_placed():
    model, other = network(), nn.Linear(2, 1)
    optimizer = sgd([{"params": model.parameters()}, {"params": other.parameters()}])
    message = r"belong to the model, but group 1, number 0, shape \(1, 2\), group 1, number 1, shape \(1,\) are foreign"
    refused(model, optimizer, message + ".*second optimizer")


def test_frozen_foreign_parameters_do_no_harm():
    model, other = network(), nn.Linear(2, 1).requires_grad_(False)
    Engine(SAM(), model, sgd([*model.parameters(), *other.parameters()]))


def test_eight_bits_are_refused():
    model = network()
    model.extra = nn.Parameter(torch.ones(2).to(torch.float8_e4m3fn))
    refused(model, sgd(model.parameters()), "fp64, fp32, bf16 or fp16, but extra is torch.float8_e4m3fn; keep")


def test_complex_parameters_are_refused():
    model = network()
    model.extra = nn.Parameter(torch.ones(2, dtype=torch.complex64))
    refused(model, sgd(model.parameters()), "real floating-point tensors, but extra is torch.complex64; split")


def test_uninitialized_parameters_are_refused():
    model = nn.Sequential(nn.LazyLinear(2))
    refused(model, sgd(model.parameters()), "0.weight is uninitialized; run one batch through the model first")


def test_nothing_to_train_is_refused():
    model = network().requires_grad_(False)
    refused(model, sgd(model.parameters()), r"at least one trainable parameter, but has none; set requires_grad_")
    refused(nn.ReLU(), sgd([nn.Parameter(torch.ones(1))]), "at least one trainable parameter, but has none")


def test_models_on_several_devices_are_refused():
    model = network()
    model[2] = nn.Linear(4, 2, device="meta")
    refused(model, sgd(model.parameters()), "one device, but are on cpu, meta; move the model")


def test_a_parameter_added_or_unfrozen_later_is_refused():
    message = "added or unfrozen since; make a new Engine"
    model = network()
    model[0].requires_grad_(False)
    optimizer = sgd(model.parameters())
    engine = Engine(SAM(), model, optimizer, lambda m, x: m(x).square().sum(1))
    engine.backward(torch.randn(4, 3))
    model[0].requires_grad_(True)
    with pytest.raises(ParameterError, match=message):
        engine.backward(torch.randn(4, 3))
    model[0].requires_grad_(False)
    engine.backward(torch.randn(4, 3))
    optimizer.add_param_group({"params": [nn.Parameter(torch.ones(1))]})
    with pytest.raises(ParameterError, match=message):
        engine.backward(torch.randn(4, 3))
    assert engine.step == 2
