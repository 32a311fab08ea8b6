"""logits-SAM moves the head alone, and which head it takes."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from problems import batch, loss_fn, net, sgd, train, weights
from ranks import on_ranks
from reference.cases import BASES, PROBLEM, SAME, path_of, some
from reference.drive import assert_differ, assert_same
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel
from torch.nn.utils import parametrizations

import lowland
from lowland import SAM, LogitsSAM
from lowland.core.errors import ArgumentError, LossError, ParameterError
from lowland.core.geometry import L2, Adaptive, Geometry, Layerwise, Preconditioned
from lowland.core.spectral import Spectral
from lowland.methods import make, spell


def only(ending: str) -> L2:
    return L2(select=lambda module, name, parameter: name.endswith(ending))


@pytest.mark.parametrize("base", BASES)
def test_it_is_sam_that_perturbs_the_head_s_weight(base: str) -> None:
    path = path_of(LogitsSAM(rho=0.4), some(), optimizer=BASES[base])
    assert_same(path, path_of(SAM(rho=0.4, geometry=only("2.weight")), some(), optimizer=BASES[base]), SAME)
    with_bias = SAM(rho=0.4, geometry=L2(select=lambda module, name, parameter: name.startswith("2.")))
    assert_differ(path, path_of(with_bias, some(), optimizer=BASES[base]))


@pytest.mark.parametrize("kind", [Adaptive, Layerwise, Preconditioned, Spectral])
def test_it_is_sam_in_every_geometry(kind: type[Geometry]) -> None:
    def chosen(module: Any, name: str, parameter: Any) -> bool:
        return name.endswith("2.weight")

    adam = BASES["adamw"]
    path = path_of(LogitsSAM(rho=0.4, geometry=kind()), some(), optimizer=adam)
    assert_same(path, path_of(SAM(rho=0.4, geometry=kind(select=chosen)), some(), optimizer=adam), SAME)


def test_the_spectral_radius_knows_the_layout_of_the_head() -> None:
    """A transposed convolution has its inputs first."""
    grads = []
    for method in (
        LogitsSAM(rho=0.3, head="2", geometry=Spectral()),
        SAM(rho=0.3, geometry=Spectral(select=lambda module, name, parameter: name == "2.weight")),
    ):
        torch.manual_seed(0)
        layers = [nn.Unflatten(1, (2, 1, 1)), nn.Conv2d(2, 4, 1), nn.ConvTranspose2d(4, 3, 2, bias=False)]
        model = nn.Sequential(*layers).double()
        engine = engine_of(method, model, lambda m, b: m(b[0]).square().flatten(1).sum(1))
        engine.backward((torch.ones(6, 2).double() * torch.arange(6).unsqueeze(1), None))
        grads.append(torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None]))
    torch.testing.assert_close(grads[0], grads[1], rtol=1e-10, atol=1e-12)


def engine_of(method: Any, model: nn.Module, loss: Any = loss_fn, **options: Any) -> lowland.Engine:
    trained = [p for p in model.parameters() if p.requires_grad]
    return lowland.Engine(method, model, torch.optim.SGD(trained, lr=0.1), loss, **options)


def test_a_model_that_is_a_head_without_bias_trains_as_with_sam() -> None:
    paths = []
    for method in (LogitsSAM(rho=0.3), SAM(rho=0.3)):
        model = nn.Linear(5, 3, bias=False).double()
        nn.init.ones_(model.weight)
        train(engine_of(method, model), 5)
        paths.append(weights(model))
    torch.testing.assert_close(paths[0], paths[1], rtol=1e-13, atol=0)


def test_nothing_else_moves_and_the_first_pass_makes_no_graph_before_the_head() -> None:
    model = net()
    moved: list[set[str]] = []
    graphs: list[bool] = []

    kept: dict[str, Tensor] = {}

    def watching(m: nn.Module, b: Any) -> Tensor:
        moved.append({name for name, p in m.named_parameters() if not torch.equal(p, kept[name])})
        return loss_fn(m, b)

    model.second.register_forward_hook(lambda module, inputs, output: graphs.append(output.grad_fn is not None))
    engine = engine_of(LogitsSAM(rho=0.3), model, watching)
    for step in range(4):  # steps 0, 1, 2, 4, 8, … look for reentrant checkpoints, for which they keep the graph
        kept = {name: p.detach().clone() for name, p in model.named_parameters()}
        engine.backward(batch(step))
        engine.optimizer.step()
        engine.optimizer.zero_grad()
    assert moved == [set(), {"last.weight"}] * 4
    assert graphs[-2:] == [False, True]
    assert engine.cost.weights == pytest.approx(4 * (1 / 6 + 1))


@pytest.mark.parametrize("head", ["last", "last.weight"])
def test_a_head_is_named_by_its_module_or_its_weight(head: str) -> None:
    found, expected = net(), net()
    train(engine_of(LogitsSAM(rho=0.3, head=head), found), 4)
    train(engine_of(LogitsSAM(rho=0.3), expected), 4)
    assert all(torch.equal(a, b) for a, b in zip(weights(found), weights(expected), strict=True))
    other = net()
    train(engine_of(LogitsSAM(rho=0.3, head="second"), other), 4)
    assert not torch.equal(other.last.weight, found.last.weight)


def test_a_head_that_is_no_linear_layer_can_be_named() -> None:
    model = nn.Sequential(nn.Linear(5, 6), nn.Tanh(), nn.Unflatten(1, (6, 1, 1)), nn.Conv2d(6, 3, 1), nn.Flatten())
    one, other = engine_of(LogitsSAM(rho=0.3, head="3"), model.double()), engine_of(SAM(), model)
    one.backward(batch())
    found = [p.grad.clone() for p in model.parameters()]
    one.optimizer.zero_grad()
    other.method = SAM(rho=0.3, geometry=only("3.weight"))
    other.backward(batch())
    torch.testing.assert_close(found, [p.grad for p in model.parameters()], rtol=1e-12, atol=1e-14)


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(4, 3)
        self.head = nn.Linear(3, 4, bias=False)
        self.head.weight = self.table.weight

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.head(torch.tanh(self.table(x)))
        return out


def test_a_tied_head_is_refused() -> None:
    for method in (LogitsSAM(), LogitsSAM(head="table")):
        with pytest.raises(ParameterError, match=r"is tied: table.weight and head.weight are one tensor; untie them"):
            engine_of(method, Tied())
    with pytest.raises(ParameterError, match=r"head must name the output head .* but is 'head'"):
        engine_of(LogitsSAM(head="head"), Tied())


def test_models_whose_head_is_unknown_are_refused() -> None:
    with pytest.raises(ParameterError, match=r"must have a linear layer for LogitsSAM .* has none; name the output"):
        engine_of(LogitsSAM(), nn.Sequential(nn.Conv1d(1, 2, 3), nn.Flatten()))
    frozen = net()
    frozen.last.requires_grad_(False)
    with pytest.raises(ParameterError, match=r"must have a trained weight, but that of last is frozen.*name the head"):
        engine_of(LogitsSAM(), frozen)
    derived = net()
    parametrizations.weight_norm(derived.last)
    with pytest.raises(ParameterError, match=r"that of last is frozen, or computed from other parameters"):
        engine_of(LogitsSAM(), derived)
    with pytest.raises(ParameterError, match=r"head must name .* but is 'lats'; .* last trained .* last.weight, last"):
        engine_of(LogitsSAM(head="lats"), net())


def test_a_last_layer_that_the_loss_does_not_use_is_refused() -> None:
    model = net()
    model.spare = nn.Linear(2, 2).double()
    engine = engine_of(LogitsSAM(), model)
    before = weights(model)
    with pytest.raises(ParameterError, match=r"the loss does not depend on spare\.weight; name the head"):
        engine.backward(batch())
    assert all(torch.equal(a, b) for a, b in zip(weights(model), before, strict=True))
    engine_of(LogitsSAM(head="last"), model).backward(batch())


def test_a_loss_without_a_graph_is_refused_as_everywhere() -> None:
    with pytest.raises(LossError, match="needs no gradient"):
        engine_of(LogitsSAM(), net(), lambda m, b: loss_fn(m, b).detach()).backward(batch())


def test_a_head_that_is_frozen_midway_leaves_plain_steps() -> None:
    model, other = net(), net()
    for m in (model, other):
        m.last.weight.requires_grad_()
    engine, plain = engine_of(LogitsSAM(rho=0.4), model), engine_of(lowland.Plain(), other)
    for m in (model, other):
        m.last.weight.requires_grad_(False)
    train(engine, 3)
    train(plain, 3)
    assert all(torch.equal(a, b) for a, b in zip(weights(model), weights(other), strict=True))


@pytest.mark.parametrize("head", [2, "", b"fc"])
def test_what_is_no_name_is_refused(head: Any) -> None:
    with pytest.raises(ArgumentError, match=r"head must be the name of a module or of a parameter, but is"):
        LogitsSAM(head=head)
    with pytest.raises(ArgumentError, match=r"write the whole name of the weight, such as .*2.weight"):
        make("logits-sam:head=2")


def test_a_geometry_that_selects_is_refused() -> None:
    with pytest.raises(ArgumentError, match=r"geometry must not select parameters of its own"):
        LogitsSAM(geometry=only("weight"))


@pytest.mark.parametrize("head", ["lm_head", "2.weight"])
def test_as_text(head: str) -> None:
    assert make(f"logits-sam:head={head}") == LogitsSAM(head=head)
    assert make(spell(LogitsSAM(head=head, rho=0.3))) == LogitsSAM(head=head, rho=0.3)


def _named(wrapper: str, head: str | None) -> list[Tensor]:
    mesh = init_device_mesh("cpu", (2,))
    model: nn.Module = net()
    if wrapper == "ddp":
        model = DistributedDataParallel(model)
    else:
        fully_shard(model.last, mesh=mesh)
        fully_shard(model, mesh=mesh)
    engine = lowland.Engine(LogitsSAM(rho=0.3, head=head), model, sgd(model), loss_fn)
    for step in range(4):
        engine.backward(batch(10 * step + torch.distributed.get_rank()))
        engine.optimizer.step()
        engine.optimizer.zero_grad()
    return [t.full_tensor() if isinstance(t, DTensor) else t for t in model.state_dict().values()]


@pytest.mark.parametrize("wrapper", ["ddp", "fsdp"])
def test_names_are_those_without_wrappers(wrapper: str) -> None:
    expected = on_ranks(2, _named, wrapper, None)
    for head in ("last", "last.weight"):
        found = on_ranks(2, _named, wrapper, head)
        assert all(torch.equal(a, b) for a, b in zip(found[0], expected[0], strict=True))
    other = on_ranks(2, _named, wrapper, "second")
    assert not all(torch.equal(a, b) for a, b in zip(other[0], expected[0], strict=True))


def test_the_problem_s_head_is_its_third_tensor() -> None:
    assert [name for name, _ in PROBLEM.module(PROBLEM.weights()).named_parameters()][2] == "2.weight"
