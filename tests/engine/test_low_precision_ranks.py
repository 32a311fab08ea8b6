"""Parameters in bf16 and fp16: models of several dtypes, other executors, several ranks, memory."""

from __future__ import annotations

import pytest
import torch
from conformance import SWITCHES, TEXTS, engine_of, loss_for, method_of, model_for
from low_precision import inputs, squares, trained, wide_layer
from problems import loss_fn, net, parted, same, sgd, weights
from ranks import on_ranks
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import Replicate, Shard, distribute_tensor
from torch.nn.parallel import DistributedDataParallel

import lowland
from lowland.core.errors import ParameterError
from lowland.executors import Batched
from lowland.executors.displacement import move
from lowland.planner.memory import LiveTensors
from lowland.sharpness import m_sharpness

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
        parted(text, lambda m, b: nn.functional.cross_entropy(m(b[0]), b[1], reduction="none")),
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
    return trained(
        lowland.Engine(method_of(text), model, sgd(model), loss_for(text), mesh=mesh), range(5), torch.bfloat16
    )


@pytest.mark.slow
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
    engine = lowland.Engine(method_of(text), model, sgd(model), loss_for(text))
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
    engine = lowland.Engine(method_of(text), model, optimizer, loss_for(text))
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


def moved_shards() -> list[Tensor]:
    """On a mesh of 2 x 2: an uneven shard with a copy, a replicated tensor, and a tensor that all four ranks divide."""
    mesh = init_device_mesh("cpu", (2, 2))
    kinds = [([Replicate(), Shard(0)], (5, 40)), ([Replicate(), Replicate()], (200,)), ([Shard(0), Shard(1)], (20, 20))]
    params = [distribute_tensor(torch.ones(shape, dtype=torch.bfloat16), mesh, place) for place, shape in kinds]
    at = [distribute_tensor(torch.full(shape, 1e-3), mesh, place) for place, shape in kinds]
    move(params, at, noise=1)
    return [p.to_local() for p in params]


def test_copies_of_a_shard_stay_equal() -> None:
    """Rank 0 and 2 hold the same rows of the first tensor, and all ranks hold the second."""
    first, second, third, fourth = on_ranks(4, moved_shards)
    assert torch.equal(first[0], third[0])
    assert torch.equal(second[0], fourth[0])
    assert not torch.equal(first[0][:2], second[0][:2])
    assert all(torch.equal(first[1], other[1]) for other in (second, third, fourth))
    quarters = [rank[2] for rank in (first, second, third, fourth)]
    assert not any(torch.equal(a, b) for i, a in enumerate(quarters) for b in quarters[:i])
    assert 0 < int((first[1] != 1).sum()) < 200


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


@pytest.mark.slow
@pytest.mark.parametrize(("text", "most"), PEAKS.items(), ids=PEAKS)
def test_memory_is_counted(text: str, most: tuple[float, float]) -> None:
    """bf16 beside fp32: saved weights and gradients take half, vectors take the same, and are there beside both."""
    assert peak(text, torch.bfloat16) <= most[0]
    assert peak(text, torch.float32) <= most[1]


def test_a_sharpness_is_measured_in_fp32() -> None:
    model = wide_layer(torch.bfloat16)
    with pytest.raises(ParameterError, match=r"measure a copy: copy.deepcopy\(model\).float\(\)"):
        m_sharpness(model, squares, [torch.randn(4, 256)], rho=0.05, m=2)
