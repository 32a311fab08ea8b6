"""The ball in the metric of Adam's second moment: by hand, against its twin, and on sharded parameters."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from problems import adamw, batch, in_parts, loss_fn, net, same, sgd, train, weights
from ranks import on_ranks
from reference import preconditioned
from reference.follow import assert_follows, in_groups
from torch import Tensor
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

import lowland
from lowland import L2, SAM, Engine, LookSAM, Preconditioned, SAMPa, vec
from lowland.core.errors import UsageError

BALL = Preconditioned()
S = [torch.tensor([[1.0, 2.0], [3.0, 4.0]], dtype=torch.float64), torch.tensor([0.5, 8.0, 2.5], dtype=torch.float64)]
G = [torch.tensor([[1.0, -2.0], [0.0, 5.0]], dtype=torch.float64), torch.tensor([-3.0, 1.0, 2.0], dtype=torch.float64)]
MEAN = 3.0  # of all seven entries of S


def test_by_hand() -> None:
    d = [s / MEAN for s in S]
    length = math.sqrt(sum(float((g**2 / x).sum()) for g, x in zip(G, d, strict=True)))
    for e, g, x in zip(BALL.ascent(G, G, 0.3, scales=S), G, d, strict=True):
        torch.testing.assert_close(e, 0.3 * g / x / length, rtol=1e-11, atol=0)


def test_the_displacement_has_size_rho_in_its_metric_and_no_other_rises_more() -> None:
    e = BALL.ascent(G, G, 0.3, scales=S)
    roots = [(s / MEAN).sqrt() for s in S]
    assert float(vec.norm(vec.mul(e, roots))) == pytest.approx(0.3, rel=1e-11)
    rise, generator = float(vec.dot(G, e)), torch.Generator().manual_seed(0)
    for _ in range(200):
        other = [torch.randn(t.shape, generator=generator, dtype=torch.float64) for t in e]
        other = vec.scale(other, 0.3 / float(vec.norm(vec.mul(other, roots))))
        assert float(vec.dot(G, other)) < rise


@pytest.mark.parametrize("size", [1e-6, 1.0, 1e6])
def test_equal_scales_are_a_round_ball(size: float) -> None:
    scales = [torch.full_like(s, size) for s in S]
    for e, x in zip(BALL.ascent(G, G, 0.3, scales=scales), L2().ascent(G, G, 0.3), strict=True):
        torch.testing.assert_close(e, x, rtol=1e-6, atol=0)  # TINY stands beside 1e-6


def test_excluded_tensors_stay_and_count_neither_in_the_norm_nor_in_the_mean() -> None:
    found = BALL.ascent(G, G, [0.0, 0.3], scales=S)
    (alone,) = BALL.ascent(G[1:], G[1:], 0.3, scales=S[1:])
    assert not found[0].any()
    torch.testing.assert_close(found[1], alone, rtol=1e-12, atol=0)
    assert all(not e.any() for e in BALL.ascent(G, G, [0.0, 0.0], scales=S))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_no_gradient_no_displacement_also_where_there_is_no_scale(dtype: torch.dtype) -> None:
    zeros = [torch.zeros(2, 2, dtype=dtype), torch.zeros(3, dtype=dtype)]
    assert all(not e.any() for e in BALL.ascent(zeros, zeros, 0.3, scales=zeros))


def test_without_scales_it_says_where_they_are() -> None:
    with pytest.raises(UsageError, match=r"got no scales; use method\.ascent\(engine, grad\), or pass scales="):
        BALL.ascent(G, G, 0.3)


@pytest.mark.parametrize("base_key", ["adamw", "adam-amsgrad"])
def test_follows_its_twin(base_key: str) -> None:
    assert_follows(SAM(rho=0.3, geometry=BALL), preconditioned.PreconditionedSAM, {"rho": 0.3}, base_key)


def test_follows_its_twin_in_groups() -> None:
    rhos = [0.3, 0.0, 0.1, 0.2]
    fields = {"rho": rhos}
    twin = preconditioned.PreconditionedSAM
    assert_follows(SAM(geometry=BALL), twin, fields, "adamw", groups=in_groups(rhos))


def displacement(engine: Engine, grad: list[Tensor]) -> list[Tensor]:
    return engine.method.ascent(engine, grad)


def gradient(model: Any, step: int = 0) -> list[Tensor]:
    return list(torch.autograd.grad(loss_fn(model, batch(step)).mean(), list(model.parameters())))


def test_the_first_step_takes_the_second_moment_of_its_own_gradient() -> None:
    # v = g^2 after bias correction, so D^-1 g is the sign, and all weights that have a gradient move equally far.
    model = net()
    engine = Engine(SAM(rho=0.3, geometry=BALL), model, adamw(model), loss_fn)
    g = gradient(model)
    e = displacement(engine, g)
    step = e[0].abs().max()
    for x, y in zip(e, g, strict=True):
        # eps = 1e-8 stands beside gradients of 1e-3
        torch.testing.assert_close(x, step * y.sign(), rtol=1e-3, atol=0)


def test_the_scale_of_the_loss_does_not_matter() -> None:
    def trained(scale: float) -> list[Tensor]:
        model = net()
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, eps=0.0)
        engine = Engine(SAM(rho=0.3, geometry=BALL), model, optimizer, lambda m, b: scale * loss_fn(m, b))
        train(engine, 4)
        return displacement(engine, vec.scale(gradient(model, 9), scale))

    for a, b in zip(trained(1.0), trained(1024.0), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=0)  # TINY


def test_a_weight_whose_gradients_have_been_zero_does_not_explode() -> None:
    # a row of an embedding that occurs for the first time: the form with v of the step before moves it by 1e8 rho
    model = torch.nn.Embedding(3, 2)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    engine = Engine(SAM(rho=0.1, geometry=BALL), model, optimizer, lambda m, b: m(b).square().sum(1))
    for _ in range(20):
        engine.backward(torch.tensor([0, 1]))
        optimizer.step()
        optimizer.zero_grad()
    e = displacement(engine, [torch.ones(3, 2)])
    assert float(e[0].abs().max()) < 10


def test_a_resume_in_the_middle_is_exact_and_later_steps_depend_on_the_moments() -> None:
    model = net()
    engine = Engine(SAM(rho=0.3, geometry=BALL), model, adamw(model), loss_fn)
    train(engine, 5)
    fresh = net()
    fresh.load_state_dict(model.state_dict())
    anew = Engine(SAM(rho=0.3, geometry=BALL), fresh, adamw(fresh), loss_fn)
    forgotten = displacement(anew, gradient(fresh, 5))
    anew.optimizer.load_state_dict(engine.optimizer.state_dict())
    remembered, expected = displacement(anew, gradient(fresh, 5)), displacement(engine, gradient(model, 5))
    assert same(remembered, expected)
    assert not any(torch.allclose(a, b, rtol=1e-3) for a, b in zip(forgotten, expected, strict=True))


@pytest.mark.parametrize("method", [SAM(geometry=BALL), lowland.Late(inner=LookSAM(geometry=BALL), start=2)])
def test_an_optimizer_without_a_second_moment_is_refused_when_the_engine_is_made(method: Any) -> None:
    model = net()
    with pytest.raises(
        UsageError, match="the second moment is known for Adam and AdamW, but the optimizer is SGD; use"
    ):
        Engine(method, model, sgd(model), loss_fn)


def test_two_optimizers_have_one_metric() -> None:
    one, other = net(), net()
    halves = [list(other.parameters())[:3], list(other.parameters())[3:]]
    train(Engine(SAMPa(geometry=BALL), one, adamw(one), in_parts), 1)
    pair = [torch.optim.AdamW(half, lr=1e-2) for half in halves]
    engine = Engine(SAM(rho=0.3, geometry=BALL), other, pair, in_parts)
    alone = Engine(SAM(rho=0.3, geometry=BALL), other, adamw(other), in_parts)
    assert same(displacement(engine, gradient(other)), displacement(alone, gradient(other)))


@pytest.mark.parametrize("options", [{"fused": True}, {"capturable": False, "foreach": True}], ids=["fused", "foreach"])
def test_the_optimizer_s_implementation_does_not_matter(options: dict[str, Any]) -> None:
    one, other = net(), net()
    for model, more in ((one, {}), (other, options)):
        engine = Engine(SAM(rho=0.3, geometry=BALL), model, adamw(model, **more), loss_fn)
        train(engine, 6)
    for a, b in zip(weights(one), weights(other), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-12)


def sharded(shard: bool) -> list[Tensor]:
    model = net()
    if shard:
        for layer in (model.first, model.second, model.last):
            fully_shard(layer, mesh=init_device_mesh("cpu", (2,)))
        fully_shard(model, mesh=init_device_mesh("cpu", (2,)))
    engine = Engine(SAM(rho=0.3, geometry=BALL), model, adamw(model), in_parts)
    for step in range(4):
        engine.backward(batch(step))
        engine.optimizer.step()
        engine.optimizer.zero_grad()
    return [(p.full_tensor() if shard else p).detach() for p in model.parameters()]


def test_sharded_parameters_train_alike() -> None:
    for found in on_ranks(2, sharded, True):
        for a, b in zip(found, sharded(False), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-12)


def on_a_mesh(geometry: lowland.Geometry, groups: int) -> list[Tensor]:
    mesh = init_device_mesh("cpu", (groups,), mesh_dim_names=("probe",)) if groups else None
    model = net()
    train(Engine(SAMPa(rho=0.1, geometry=geometry), model, adamw(model), loss_fn, mesh=mesh), 5)
    return weights(model)


@pytest.mark.parametrize("geometry", [BALL, lowland.Spectral()], ids=["preconditioned", "spectral"])
def test_probe_groups_train_as_one_device(geometry: lowland.Geometry) -> None:
    for found in on_ranks(2, on_a_mesh, geometry, 2):
        assert same(found, on_a_mesh(geometry, 0))
