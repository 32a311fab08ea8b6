"""Parameters in bf16 and fp16: displaced on average by what the method wants, and restored bit for bit."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from conformance import SWITCHES, TEXTS, engine_of, every, method_of, model_for
from problems import adamw, batch, loss_fn, net, same, sgd, weights
from ranks import on_ranks
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel

import lowland
from lowland.core import vec
from lowland.core.errors import ParameterError, UsageError
from lowland.executors import Batched
from lowland.lab.training.memory import LiveTensors
from lowland.sharpness import m_sharpness

LOW = [torch.bfloat16, torch.float16]
every_dtype = pytest.mark.parametrize("dtype", LOW, ids=str)


def inputs(step: int, dtype: torch.dtype) -> tuple[Tensor, ...]:
    return batch(step, dtype=dtype)


def trained(engine: lowland.Engine, steps: range, dtype: torch.dtype) -> list[Tensor]:
    """The weights after some steps, and the gradients of the last one."""
    for step in steps:
        engine.optimizer.zero_grad()
        engine.backward(inputs(step, dtype))
        engine.optimizer.step()
    return [*weights(engine.model), *[p.grad.clone() for p in engine.params if p.grad is not None]]


# What is wanted: the displacement on average


def wide_layer(dtype: torch.dtype) -> nn.Module:
    torch.manual_seed(0)
    return nn.Linear(256, 256).to(dtype)


def squares(model: nn.Module, x: Tensor) -> Tensor:
    return model(x).float().square().mean(1)


def wanted(model: nn.Module, x: Tensor, rho: float) -> list[Tensor]:
    """SAM's displacement by hand, in float64, along torch's own gradient."""
    grads = [g.double() for g in torch.autograd.grad(squares(model, x).mean(), list(model.parameters()))]
    norm = torch.cat([g.flatten() for g in grads]).norm()
    return [rho * g / norm for g in grads]


def displacements(engine: lowland.Engine, x: Tensor, count: int) -> list[Tensor]:
    """The displacements of the second passes of ``count`` steps, flat."""
    found = []
    for _ in range(count):
        start = [p.detach().double() for p in engine.params]
        for p in engine.passes(x):
            with p:
                moved = [q.detach().double() - s for q, s in zip(engine.params, start, strict=True)]
                p.backward(squares(engine.model, p.batch))
        found.append(torch.cat([m.flatten() for m in moved]))
        engine.optimizer.zero_grad()
    return found


@every_dtype
@pytest.mark.parametrize("rho", [0.05, 1e-3, 2e-4])
def test_the_mean_displacement_is_the_method_s_within_two_per_cent(dtype: torch.dtype, rho: float) -> None:
    model = wide_layer(dtype)
    before, x = weights(model), torch.randn(8, 256, generator=torch.Generator().manual_seed(1)).to(dtype)
    engine = lowland.Engine(lowland.SAM(rho=rho), model, sgd(model, lr=0.0), squares)
    e = torch.cat([t.flatten() for t in wanted(model, x, rho)])
    found = displacements(engine, x, 40)
    mean = torch.stack(found).mean(0)
    assert float(mean @ e / (e @ e)) == pytest.approx(1, abs=0.02)
    assert same(before, weights(model))
    if rho == 1e-3:  # the rounding's own noise
        assert float(found[0].norm() / e.norm()) == pytest.approx(5.7 if dtype is torch.bfloat16 else 2.0, rel=0.05)
    # Entries are unbiased, too: the mean of 40 draws is as near to e as one draw's spread over sqrt(40) says.
    spread = torch.stack(found).var(0).sum() / len(found)
    assert float((mean - e).square().sum()) < 1.1 * float(spread) + 1e-6 * float(e @ e)


def test_rounding_to_the_nearest_value_would_lose_it() -> None:
    model, rho = wide_layer(torch.bfloat16), 2e-4
    x = torch.randn(8, 256, generator=torch.Generator().manual_seed(1)).to(torch.bfloat16)
    e = wanted(model, x, rho)
    near = [
        (p.detach().double() + t).to(p.dtype).double() - p.detach().double()
        for p, t in zip(model.parameters(), e, strict=True)
    ]
    lost, full = torch.cat([n.flatten() for n in near]), torch.cat([t.flatten() for t in e])
    assert float(lost @ full / (full @ full)) < 0.02


@every_dtype
def test_sam_by_hand(dtype: torch.dtype) -> None:
    """Each weight moves to a neighbour of w + e, and the gradient is torch's own there, bit for bit."""
    model = net(dtype=dtype)
    optimizer = sgd(model)
    engine = lowland.Engine(lowland.SAM(rho=0.05), model, optimizer, loss_fn)
    for step in range(4):
        twin, x = copy.deepcopy(model), inputs(step, dtype)
        there: list[Tensor] = []
        for p in engine.passes(x):
            with p:
                there = [q.detach().clone() for q in engine.params]
                p.backward(loss_fn(model, p.batch))
        grads = [g.double() for g in torch.autograd.grad(loss_fn(twin, x).mean(), list(twin.parameters()))]
        norm = torch.cat([g.flatten() for g in grads]).norm()
        for q, w, g in zip(there, twin.parameters(), grads, strict=True):
            target = w.detach().double() + 0.05 * g / norm
            # one step of the dtype: 2^-7 of the value in bf16 and 2^-10 in fp16, and 2^-24 among fp16's smallest
            step_size = target.abs().clamp_min(w.detach().double().abs()) * torch.finfo(dtype).eps + 2.0**-24
            assert bool(((q.double() - target).abs() <= step_size * 1.001).all())
        with torch.no_grad():
            for w, q in zip(twin.parameters(), there, strict=True):
                w.copy_(q)
        expected = torch.autograd.grad(loss_fn(twin, x).mean(), list(twin.parameters()))
        assert same([p.grad for p in engine.params], list(expected))
        optimizer.step()
        optimizer.zero_grad()


# What every method promises


@every_dtype
@every
def test_weights_stay_and_vectors_are_fp32(text: str, dtype: torch.dtype) -> None:
    engine = engine_of(text, model_for(text, dtype=dtype))
    for step in range(4):
        before = [p.detach().clone() for p in engine.params]
        engine.optimizer.zero_grad()
        engine.backward(inputs(step, dtype))
        assert same(before, [p.detach() for p in engine.params])
        assert {p.grad.dtype for p in engine.params if p.grad is not None} == {dtype}
        assert {t.dtype for key in engine.vector_keys for t in engine.memory[key]} <= {torch.float32}
        engine.optimizer.step()
    assert all(bool(p.isfinite().all()) for p in engine.params)


@every_dtype
@every
def test_a_resume_is_bit_for_bit(text: str, dtype: torch.dtype) -> None:
    def make() -> lowland.Engine:
        return engine_of(text, model_for(text, dtype=dtype))

    engine = make()
    trained(engine, range(3), dtype)
    saved = copy.deepcopy((engine.model.state_dict(), engine.state_dict(), engine.optimizer.state_dict()))
    expected = trained(engine, range(3, 6), dtype)
    other = make()
    other.model.load_state_dict(saved[0])
    other.load_state_dict(saved[1])
    other.optimizer.load_state_dict(saved[2])
    assert same(expected, trained(other, range(3, 6), dtype))


CHOOSING = ("k-sam", "esam", "ausam")  # by losses, among which rounding decides


@pytest.mark.parametrize("text", [t for t in [*TEXTS.values(), *SWITCHES] if not t.startswith(CHOOSING)])
def test_the_gradient_is_that_of_fp32_up_to_rounding(text: str) -> None:
    """The method in fp32, at the same weights in every step: a factor that is missing would be seen."""
    engine = engine_of(text, model_for(text, dtype=torch.bfloat16))
    twin = engine_of(text, model_for(text, dtype=torch.float32))
    for step in range(5):
        with torch.no_grad():
            for p, q in zip(twin.params, engine.params, strict=True):
                p.copy_(q)
        x, *rest = inputs(step, torch.bfloat16)
        engine.optimizer.zero_grad()
        twin.optimizer.zero_grad()
        engine.backward((x, *rest))
        twin.backward((x.float(), *rest))
        grads = zip([p.grad for p in engine.params], [q.grad for q in twin.params], strict=True)
        pairs = [(a.float(), b) for a, b in grads if b is not None]
        apart = sum(float((a - b).square().sum()) for a, b in pairs) ** 0.5
        assert apart < 0.1 * sum(float(b.square().sum()) for _, b in pairs) ** 0.5, step
        engine.optimizer.step()
        twin.optimizer.step()


@every_dtype
def test_plain_is_torch_s_own_training_bit_for_bit(dtype: torch.dtype) -> None:
    model, bare = net(dtype=dtype), net(dtype=dtype)
    engine, optimizer = lowland.Engine(lowland.Plain(), model, sgd(model), loss_fn), sgd(bare)
    for step in range(4):
        optimizer.zero_grad()
        loss_fn(bare, inputs(step, dtype)).mean().backward()
        optimizer.step()
    trained(engine, range(4), dtype)
    assert same(weights(model), weights(bare))


@every_dtype
@pytest.mark.parametrize(
    "base",
    [sgd, lambda m: adamw(m, eps=1e-3), lambda m: torch.optim.RMSprop(m.parameters(), lr=1e-3, eps=1e-3)],
    ids=["sgd", "adamw", "rmsprop"],
)
def test_sampa_looks_ahead_to_where_the_optimizer_goes(dtype: torch.dtype, base: Any) -> None:
    """The displacement in fp32 against a step of the same optimizer on fp32 copies of weights and state."""
    torch.manual_seed(0)
    model = net(dtype=dtype)
    engine = lowland.Engine(lowland.SAMPa(), model, base(model), loss_fn)
    trained(engine, range(3), dtype)
    twin = net(dtype=torch.float32)
    other = base(twin)
    with torch.no_grad():
        for p, q in zip(twin.parameters(), model.parameters(), strict=True):
            p.copy_(q)
    other.load_state_dict(copy.deepcopy(engine.optimizer.state_dict()))
    before = [p.detach().clone() for p in twin.parameters()]
    grad = [torch.randn_like(p) for p in twin.parameters()]
    for p, g in zip(twin.parameters(), grad, strict=True):
        p.grad = g.clone()
    other.step()
    found = engine.lookahead(grad)
    assert {t.dtype for t in found} == {torch.float32}
    for e, p, old in zip(found, twin.parameters(), before, strict=True):
        if isinstance(engine.optimizer, torch.optim.SGD | torch.optim.AdamW):
            torch.testing.assert_close(e, p.detach() - old, rtol=1e-3, atol=1e-6)
        else:  # a copy of the optimizer takes the step, and rounds as the optimizer does
            assert float((e - (p.detach() - old)).abs().max()) <= 2 * torch.finfo(dtype).eps * float(old.abs().max())


def test_momentum_is_read_in_fp32() -> None:
    model = net(dtype=torch.bfloat16)
    engine = lowland.Engine(lowland.MomentumSAM(), model, sgd(model), loss_fn)
    assert {t.dtype for t in engine.momentum()} == {torch.float32}
    trained(engine, range(2), torch.bfloat16)
    assert {t.dtype for t in engine.momentum()} == {torch.float32}


@dataclass(frozen=True, kw_only=True)
class Mean(lowland.Method):
    """A method of one's own whose memory begins in the parameters' dtype."""

    lost: bool = False

    def init(self, params: list[Tensor]) -> dict[str, Any]:
        return {"mean": [torch.zeros_like(p) for p in params]}

    def plan(self, engine: Any, batch: Any) -> Any:
        here = yield lowland.Probe(batch)
        engine.memory["mean"] = vec.lerp(engine.memory["mean"], here.grad, 0.5)
        return here.loss, [
            g.to(p.dtype) for g, p in zip(here.grad, engine.params, strict=True)
        ] if self.lost else here.grad


def test_memory_of_a_method_of_one_s_own_is_fp32_too() -> None:
    model = net(dtype=torch.bfloat16)
    engine = lowland.Engine(Mean(), model, sgd(model), loss_fn)
    trained(engine, range(2), torch.bfloat16)
    assert {t.dtype for t in engine.memory["mean"]} == {torch.float32}


def test_a_result_in_bf16_is_refused() -> None:
    model = net(dtype=torch.bfloat16)
    engine = lowland.Engine(Mean(lost=True), model, sgd(model), loss_fn)
    with pytest.raises(UsageError, match=r"returned a torch.bfloat16 tensor .* which needs a torch.float32 tensor"):
        engine.backward(inputs(0, torch.bfloat16))


# Models of several dtypes, other executors, several ranks


class Mixed(nn.Module):
    """Layers in bf16 with a normalization in fp32, as large models are kept."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.norm = nn.Linear(5, 8, dtype=torch.bfloat16), nn.LayerNorm(8)
        self.last = nn.Linear(8, 3, dtype=torch.bfloat16)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.norm(self.first(x).float()).bfloat16()).float()


@pytest.mark.parametrize("text", [*TEXTS.values(), *SWITCHES])
def test_layers_in_bf16_with_norms_in_fp32(text: str) -> None:
    torch.manual_seed(0)
    model = Mixed()
    x, y = torch.randn(8, 5).bfloat16(), torch.randint(3, (8,))
    engine = lowland.Engine(
        method_of(text),
        model,
        sgd(model),
        lambda m, b: nn.functional.cross_entropy(m(b[0]), b[1], reduction="none"),
    )
    index = torch.arange(8)
    for _ in range(4):
        before = [p.detach().clone() for p in engine.params]
        engine.backward((x, y, index))
        assert same(before, [p.detach() for p in engine.params])
        assert all(p.grad is None or p.grad.dtype == p.dtype for p in engine.params)
        engine.optimizer.step()
        engine.optimizer.zero_grad()


@pytest.mark.parametrize("text", ["sampa", "micro-sam", "async-sam"])
def test_probes_answered_together_move_to_the_same_weights(text: str) -> None:
    one = engine_of(text, model_for(text, dtype=torch.bfloat16))
    two = engine_of(text, model_for(text, dtype=torch.bfloat16), executor=Batched(width=2))
    for step in range(4):
        with torch.no_grad():
            for p, q in zip(two.params, one.params, strict=True):
                p.copy_(q)
        for engine in (one, two):
            engine.optimizer.zero_grad()
            engine.backward(inputs(step, torch.bfloat16))
            engine.optimizer.step()
        for p, q in zip(one.params, two.params, strict=True):
            torch.testing.assert_close(p.grad, q.grad, rtol=0.05, atol=5e-3)


def on_a_mesh(text: str, groups: int) -> list[Tensor]:
    torch.manual_seed(0)
    model = net(dtype=torch.bfloat16)
    mesh = init_device_mesh("cpu", (groups,), mesh_dim_names=("probe",)) if groups else None
    return trained(lowland.Engine(method_of(text), model, sgd(model), loss_fn, mesh=mesh), range(5), torch.bfloat16)


@pytest.mark.parametrize("text", ["sampa", "micro-sam", "async-sam", "sam"])
@pytest.mark.usefixtures("way")
def test_a_mesh_of_two_is_one_device_bit_for_bit(text: str) -> None:
    first, second = on_ranks(2, on_a_mesh, text, 2)
    assert same(first, second)
    assert same(first, on_a_mesh(text, 0))


def refused_on_a_mesh() -> str:
    model = net(dtype=torch.bfloat16)
    mesh = init_device_mesh("cpu", (2,), mesh_dim_names=("probe",))
    with pytest.raises(ParameterError, match="must have no scaler on a probe mesh, because"):
        lowland.Engine(lowland.SAMPa(), model, sgd(model), loss_fn, mesh=mesh, scaler=torch.amp.GradScaler("cpu"))
    return "refused"


def test_a_scaler_on_a_mesh_is_refused() -> None:
    assert on_ranks(2, refused_on_a_mesh) == ["refused"] * 2


def under_ddp(text: str) -> list[Tensor]:
    rank = torch.distributed.get_rank()
    model = DistributedDataParallel(net(dtype=torch.bfloat16))
    engine = lowland.Engine(method_of(text), model, sgd(model), loss_fn)
    for step in range(4):
        engine.optimizer.zero_grad()
        engine.backward(inputs(2 * step + rank, torch.bfloat16))
        engine.optimizer.step()
    return weights(model)


@pytest.mark.parametrize("text", ["sam", "sampa", "looksam:k=2", "sam:ascent_gradient=local"])
def test_data_parallel_ranks_stay_equal(text: str) -> None:
    first, second = on_ranks(2, under_ddp, text)
    assert same(first, second)


def sharded(text: str) -> bool:
    model = net(dtype=torch.bfloat16)
    fully_shard(model, mesh=init_device_mesh("cpu", (2,)))
    optimizer = sgd(model)
    engine = lowland.Engine(method_of(text), model, optimizer, loss_fn)
    for step in range(4):
        before = [p.to_local().clone() for p in engine.params]
        engine.backward(inputs(step, torch.bfloat16))
        assert same(before, [p.to_local() for p in engine.params])
        assert {p.grad.dtype for p in engine.params} == {torch.bfloat16}
        optimizer.step()
        optimizer.zero_grad()
    return True


@pytest.mark.parametrize("text", ["sam", "sampa", "looksam:k=2"])
def test_shards_in_bf16(text: str) -> None:
    assert on_ranks(2, sharded, text) == [True, True]


# What it costs, and what is refused


def peak(text: str, dtype: torch.dtype) -> float:
    """The most bytes per parameter that steps hold beside the weights and what memory held before."""
    torch.manual_seed(0)
    model = nn.Sequential(*[nn.Linear(128, 128, bias=False) for _ in range(30)]).to(dtype)
    engine = lowland.Engine(method_of(text), model, sgd(model), lambda m, b: squares(m, b[0]))
    x = torch.randn(4, 128).to(dtype), torch.zeros(4).long(), torch.arange(4)

    def step() -> None:
        engine.backward(x)
        engine.optimizer.step()
        engine.optimizer.zero_grad()

    for _ in range(3):
        step()
    with LiveTensors() as meter:
        for _ in range(6):
            step()
    return meter.peak / sum(p.numel() for p in model.parameters())


# bytes per parameter that a step holds at its peak, beside the weights and what memory held before
PEAKS = {
    "plain": (4.1, 4.2),
    "sam": (6.7, 8.1),
    "sampa": (20.1, 16.1),
    "looksam:k=3": (20.1, 20.1),
    "micro-sam": (12.1, 12.1),
    "friendly-sam": (20.1, 20.1),
    "sam:geometry=adaptive": (14.1, 16.1),
}


@pytest.mark.parametrize(("text", "most"), PEAKS.items(), ids=PEAKS)
def test_memory_is_counted(text: str, most: tuple[float, float]) -> None:
    """bf16 beside fp32: saved weights and gradients take half, vectors take the same, and are there beside both."""
    assert peak(text, torch.bfloat16) <= most[0]
    assert peak(text, torch.float32) <= most[1]


def test_a_sharpness_is_measured_in_fp32() -> None:
    model = wide_layer(torch.bfloat16)
    with pytest.raises(ParameterError, match=r"measure a copy: copy.deepcopy\(model\).float\(\)"):
        m_sharpness(model, squares, [torch.randn(4, 256)], rho=0.05, m=2)
