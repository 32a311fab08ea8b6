"""The balls in the spectral norm: small matrices by hand, the singular values, every width, and sharded matrices."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from problems import adamw, batch, in_parts, loss_fn, net, sgd
from ranks import on_ranks
from reference import geometry, looksam, sam
from reference.follow import BASES, assert_follows, in_groups
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

from lowland import L2, SAM, Engine, Layerwise, LookSAM, Spectral, vec
from lowland.core.errors import ArgumentError
from lowland.core.spectral import layout, polar

BALL = Spectral()


def of(grad: Tensor, radius: float = 1.0, **known: Any) -> Tensor:
    return BALL.ascent([torch.zeros_like(grad)], [grad], radius, **known)[0]


def spectrum(e: Tensor) -> Tensor:
    return torch.linalg.svdvals(e.reshape(e.shape[0], -1))


HAND = {
    "diagonal": ([[3.0, 0.0], [0.0, 1.0]], [[1.0, 0.0], [0.0, 1.0]]),
    "signs": ([[0.0, -2.0], [5.0, 0.0]], [[0.0, -1.0], [1.0, 0.0]]),
    "rank one": ([[3.0, 4.0], [6.0, 8.0]], [[3 / 125**0.5, 4 / 125**0.5], [6 / 125**0.5, 8 / 125**0.5]]),
    "wide": ([[0.0, 0.0, 7.0], [2.0, 0.0, 0.0]], [[0, 0, (2 / 3) ** 0.5], [(2 / 3) ** 0.5, 0, 0]]),
    "tall": ([[0.0, 2.0], [0.0, 0.0], [7.0, 0.0]], [[0, 1.5**0.5], [0, 0], [1.5**0.5, 0]]),
    "bias": ([3.0, 4.0], [0.6 * 2**0.5, 0.8 * 2**0.5]),  # sqrt(n) times the unit vector: root mean square 1
    "one row": ([[3.0, 4.0]], [[0.6 / 2**0.5, 0.8 / 2**0.5]]),
    "number": (-0.2, -1.0),
}


@pytest.mark.parametrize(("grad", "expected"), HAND.values(), ids=HAND)
def test_by_hand(grad: Any, expected: Any) -> None:
    g, e = (torch.tensor(x, dtype=torch.float64) for x in (grad, expected))
    torch.testing.assert_close(of(g, 0.25), 0.25 * e, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("shape", [(6, 4), (4, 6), (5, 5), (8, 3, 2, 2), (7,)])
def test_it_is_u_v_from_the_singular_value_decomposition(shape: tuple[int, ...]) -> None:
    g = torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    matrix = g.reshape(shape[0], -1)
    u, _, v = torch.linalg.svd(matrix, full_matrices=False)
    m, n = matrix.shape
    # with 24 iterations singular values down to 1e-5 of the norm have come to 1
    e = Spectral(iterations=24).ascent([g], [g], 0.3)[0]
    torch.testing.assert_close(e, (0.3 * math.sqrt(m / n) * u @ v).reshape(shape), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_the_spectral_norm_is_the_radius_and_never_more(dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(1)
    for m, n, rank in ((30, 50, 30), (50, 30, 4), (20, 20, 1)):
        g = torch.randn(m, n, generator=generator, dtype=dtype)
        if rank < min(m, n):
            g = g[:, :rank] @ torch.randn(rank, n, generator=generator, dtype=dtype)
        values = spectrum(of(g, 0.1)) / (0.1 * math.sqrt(m / n))
        assert float(values[0]) == pytest.approx(1.0, abs=1e-5 if dtype is torch.float32 else 1e-12)
        assert float(values[:rank].min()) > 0.5
        assert float(values[rank:].amax() if rank < min(m, n) else torch.zeros(())) < 1e-3  # what is only rounding


@pytest.mark.parametrize(("relative", "least"), [(1e-2, 0.9999), (1e-3, 0.98), (1e-9, 0.0)])
def test_small_singular_values_come_close_to_one_as_the_docstring_says(relative: float, least: float) -> None:
    g = torch.diag(torch.tensor([1.0, relative], dtype=torch.float64))
    found = spectrum(polar(g, 12))
    assert least <= float(found[1]) <= 1.0
    assert float(found[0]) == pytest.approx(1.0, abs=1e-12)


def test_no_matrix_in_the_ball_rises_more() -> None:
    generator = torch.Generator().manual_seed(2)
    g = torch.randn(5, 7, generator=generator, dtype=torch.float64)
    rise = float((g * of(g)).sum())
    for _ in range(300):
        other = torch.randn(5, 7, generator=generator, dtype=torch.float64)
        other *= math.sqrt(5 / 7) / spectrum(other)[0]
        assert float((g * other).sum()) < rise


def change(ball: Any, inputs: int, outputs: int, bias: bool = False) -> float:
    """How much the ball's displacement changes a layer's outputs for inputs of size 1, in root mean square."""
    torch.manual_seed(inputs)
    layer = nn.Linear(inputs, outputs, bias=bias).double()
    x = torch.randn(1, inputs, dtype=torch.float64)
    x /= x.square().mean().sqrt()
    target = torch.randn(1, outputs, dtype=torch.float64)
    params = [p.detach() for p in layer.parameters()]
    grads = torch.autograd.grad((layer(x) * target).sum(), list(layer.parameters()))
    e = ball.ascent(params, list(grads), 0.1)
    return float((x @ e[0].T + (e[1] if bias else 0.0)).square().mean().sqrt())


SHAPES = [(8, 8), (64, 64), (200, 200), (16, 256), (256, 16)]


@pytest.mark.parametrize("bias", [False, True])
def test_the_outputs_of_a_layer_change_alike_at_every_width(bias: bool) -> None:
    found = [change(BALL, *shape, bias) for shape in SHAPES]
    assert found == pytest.approx([0.2 if bias else 0.1] * 5, rel=1e-10)


def test_other_balls_change_the_outputs_by_the_width() -> None:
    # ||w|| grows with the root of the width, and a ball of fixed length has the root of inputs / outputs.
    relative = [change(Layerwise(), *shape) for shape in SHAPES[:3]]
    assert relative[2] / relative[0] == pytest.approx(5, rel=0.1)
    fixed = [change(L2(), *shape) for shape in SHAPES[3:]]
    assert fixed[1] / fixed[0] == pytest.approx(16, rel=1e-9)


@pytest.mark.parametrize("base_key", BASES)
def test_follows_its_twin(base_key: str) -> None:
    assert_follows(SAM(rho=0.1, geometry=BALL), sam.SAM, {"rho": 0.1, "geometry": geometry.spectral()}, base_key)


def test_other_methods_follow_their_twins_in_groups() -> None:
    rhos = [0.2, 0.0, 0.1, 0.1]
    method = LookSAM(k=3, alpha=0.5, geometry=Spectral(iterations=5))
    fields = {"rho": rhos, "k": 3, "alpha": 0.5, "geometry": geometry.spectral(5)}
    assert_follows(method, looksam.LookSAM, fields, "momentum", groups=in_groups(rhos))


# Zero, tiny, and low precision


@pytest.mark.parametrize("shape", [(3, 2), (4,), (), (0, 3), (3, 0)])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_no_gradient_no_displacement(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    g = torch.zeros(shape, dtype=dtype)
    e = of(g)
    assert (e.shape, e.dtype) == (g.shape, g.dtype)
    assert not e.any()


@pytest.mark.parametrize("factor", [1e-6, 1e6])
def test_the_scale_of_the_loss_does_not_matter(factor: float) -> None:
    g = torch.randn(4, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    torch.testing.assert_close(of(g * factor), of(g), rtol=1e-5, atol=0)  # TINY stands beside norms of 1e-6


def test_a_nan_stays_one() -> None:
    assert of(torch.tensor([[1.0, float("nan")], [2.0, 3.0]])).isnan().all()


def test_autocast_around_the_step_does_not_round_it() -> None:
    g = torch.randn(16, 16, generator=torch.Generator().manual_seed(0))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = of(g)
    assert torch.equal(found, of(g))


def test_the_memory_format_is_that_of_the_gradient() -> None:
    g = torch.randn(4, 3, 2, 2).to(memory_format=torch.channels_last)
    e = of(g)
    assert e.stride() == g.stride()
    torch.testing.assert_close(e, of(g.contiguous()))


def test_arguments_are_left_alone() -> None:
    for g in (torch.tensor([3.0, 4.0]), torch.tensor([[3.0, 4.0]]), torch.eye(2)):
        before = g.clone()
        of(g).fill_(9.0)
        assert torch.equal(g, before)


@pytest.mark.parametrize("iterations", [0, -1, 2.5, True, None])
def test_iterations_that_are_none_are_refused(iterations: Any) -> None:
    with pytest.raises(ArgumentError, match=r"iterations must be an integer >= 1, but is .*; 12 is usual"):
        Spectral(iterations=iterations)


# Layers of other layouts


def test_rows_of_an_embedding_move_alike_and_a_transposed_convolution_is_one() -> None:
    torch.manual_seed(0)
    model = nn.ModuleDict({"table": nn.Embedding(6, 4), "up": nn.ConvTranspose1d(3, 5, 2), "down": nn.Conv1d(3, 5, 2)})
    assert [layout(m, m.weight) for m in model.values()] == ["rows", "inputs", "outputs"]
    assert layout(model["up"], model["up"].bias) == "outputs"
    model = model.double()

    def loss(m: nn.ModuleDict, b: Tensor) -> Tensor:
        rows = m["table"](b)[:, :3]
        return m["up"](rows).square().mean() + m["down"](rows).square().mean()

    engine = Engine(SAM(rho=0.1, geometry=BALL), model, sgd(model), loss)
    index = torch.tensor([[0, 1, 2], [2, 1, 5]])
    g = list(torch.autograd.grad(loss(model, index), list(model.parameters())))
    e = dict(zip(engine.names, engine.method.ascent(engine, g), strict=True))
    rows = e["table.weight"].square().mean(1).sqrt()
    torch.testing.assert_close(rows, 0.1 * torch.tensor([1, 1, 1, 0, 0, 1], dtype=torch.float64), rtol=1e-9, atol=0)
    up = g[engine.names.index("up.weight")]  # (inputs, outputs, width)
    torch.testing.assert_close(e["up.weight"].transpose(0, 1), of(up.transpose(0, 1).contiguous(), 0.1))
    torch.testing.assert_close(e["down.weight"], of(g[engine.names.index("down.weight")], 0.1))


# Sharded matrices


def train(model: nn.Module) -> Engine:
    engine = Engine(SAM(rho=0.1, geometry=BALL), model, adamw(model), in_parts)
    for step in range(4):
        engine.backward(batch(step))
        engine.optimizer.step()
        engine.optimizer.zero_grad()
    return engine


def sharded() -> list[Tensor]:
    mesh = init_device_mesh("cpu", (2,))
    model = net()
    for layer in (model.first, model.second, model.last):
        fully_shard(layer, mesh=mesh)  # the last layer has 3 rows: the ranks hold 2 and 1
    fully_shard(model, mesh=mesh)
    return [p.full_tensor().detach() for p in train(model).params]


def test_sharded_matrices_are_gathered_and_divided_again() -> None:
    expected = train(net()).params
    for found in on_ranks(2, sharded):
        for a, b in zip(found, expected, strict=True):
            torch.testing.assert_close(a, b.detach(), rtol=1e-10, atol=1e-12)


def test_it_needs_no_optimizer_state_and_works_at_the_first_step() -> None:
    model = net()
    engine = Engine(SAM(rho=0.1, geometry=BALL), model, sgd(model), loss_fn)
    engine.backward(batch())
    assert bool(vec.finite([p.grad for p in engine.params]))
