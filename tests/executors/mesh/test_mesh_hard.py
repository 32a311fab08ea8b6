"""What is hard for ranks that divide probes: errors in mid-step, layouts, hooks, uneven batches, shared numbers."""

from __future__ import annotations

import os
from typing import Any

import pytest
import torch
from meshed import engine_on, steps
from problems import TripError, batch, loss_fn, net, sgd
from ranks import SWITCH, Ranks, on_ranks
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

import lowland
from lowland import SAM, AsyncSAM, MicroSAM, SAMPa
from lowland.core.errors import ParameterError, UsageError
from lowland.core.geometry import L2
from lowland.core.probe import Probe
from lowland.parallel import assert_replicas_equal

pytestmark = pytest.mark.usefixtures("way")


def interrupted(times: int) -> dict[str, Tensor]:
    """Backward fails on both ranks when some gradients have left already; the next steps are as if it had not."""
    model = net()
    engine = engine_on(SAMPa(), model)
    for step in range(4):
        steps(engine, 1, step)
        for _ in range(times):

            def fail(grad: Tensor) -> Tensor:
                raise TripError

            handle = model.first.weight.register_hook(fail)
            sent = engine.executor.inner.sent  # type: ignore[attr-defined]
            with pytest.raises(TripError):
                engine.backward(batch(step + 1))
            handle.remove()
            # By messages, some have left; into shared memory nothing is written before backward has ended.
            assert (engine.executor.inner.sent > sent) is (os.environ[SWITCH] == "0")  # type: ignore[attr-defined]
    return dict(model.state_dict())


def test_a_backward_that_fails_leaves_nothing_behind() -> None:
    calm, other = (on_ranks(2, interrupted, times) for times in (0, 3))
    for name, value in calm[0].items():
        assert all(torch.equal(rank[name], value) for rank in [*calm, *other]), name


class Images(nn.Module):
    """A convolutional network whose weights are laid out channels last."""

    def __init__(self) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.layers = nn.Sequential(
                nn.Conv2d(16, 32, 3), nn.ReLU(), nn.Conv2d(32, 32, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten()
            )
            self.last = nn.Linear(32, 3)
        self.to(memory_format=torch.channels_last)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.layers(x.to(memory_format=torch.channels_last)))


def laid_out(kind: type[lowland.Method]) -> tuple[int, ...]:
    model = Images()
    engine = engine_on(kind(), model)
    for step in range(6):
        generator = torch.Generator().manual_seed(step)
        inputs = torch.randn(4, 16, 8, 8, generator=generator)
        engine.backward((inputs, torch.randint(3, (4,), generator=generator)))
        nn.utils.clip_grad_norm_(engine.params, 0.05)
        stride = model.layers[2].weight.grad.stride()
        engine.optimizer.step()
        engine.optimizer.zero_grad()
        assert_replicas_equal(model)
    return stride


@pytest.mark.parametrize("kind", [SAMPa, AsyncSAM])
def test_gradients_are_laid_out_as_the_weights_on_every_rank(kind: type[lowland.Method]) -> None:
    assert on_ranks(2, laid_out, kind) == [(288, 1, 96, 32)] * 2


def chosen() -> None:
    steps(engine_on(SAMPa(geometry=L2(select=lambda module, name, p: p.dim() > 1)), net()), 2)


def test_functions_of_the_same_name_are_the_same_method() -> None:
    on_ranks(2, chosen)


class Small(nn.Module):
    """Parameters of one row before a large one: most ranks hold nothing of them."""

    def __init__(self) -> None:
        super().__init__()
        self.token = nn.Parameter(torch.ones(1, 5, dtype=torch.float64))
        self.place = nn.Parameter(torch.zeros(1, 5, dtype=torch.float64))
        self.large = nn.Linear(5, 64, dtype=torch.float64)
        self.last = nn.Linear(64, 3, dtype=torch.float64)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(torch.tanh(self.large(x * self.token + self.place)))


def in_shards(shape: tuple[int, int]) -> list[Tensor]:
    torch.manual_seed(0)
    model = Small()
    if shape[1] == 0:
        engine = engine_on(SAMPa(), model, ranks=False)
        steps(engine, 4)
        return [p.detach() for p in model.parameters()]
    mesh = init_device_mesh("cpu", shape, mesh_dim_names=("probe", "data"))
    fully_shard(model, mesh=mesh["data"])
    engine = lowland.Engine(SAMPa(), model, sgd(model), loss_fn, mesh=mesh["probe"])
    engine.executor.inner.bucket = 256  # type: ignore[attr-defined]
    steps(engine, 4)
    return [p.full_tensor().detach() for p in model.parameters()]  # type: ignore[attr-defined]


def test_ranks_that_hold_nothing_of_a_bucket() -> None:
    torch.manual_seed(0)
    expected = in_shards((0, 0))
    for found in on_ranks(4, in_shards, (2, 2)):
        torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10)


class Mixed(lowland.Method):
    """Wants a gradient of one probe, and a loss alone of the other."""

    kind = "mixed"

    def plan(self, engine: Any, batch: Any) -> Any:
        first, _ = yield (Probe(batch), Probe(batch, grad=False))
        return first.loss, first.grad


def mixed() -> None:
    with pytest.raises(UsageError, match="must all want a gradient or none"):
        engine_on(Mixed(), net()).backward(batch())


def test_probes_that_want_different_things_are_refused() -> None:
    on_ranks(2, mixed)


class Noise(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x * (torch.rand_like(x) > 0.5)


def shared(ranks: bool) -> tuple[dict[str, Tensor], Tensor]:
    model = net(dropout=0.0)
    model.drop = Noise()
    torch.manual_seed(3)
    steps(engine_on(SAMPa(), model, ranks=ranks, rng="shared"), 6, sizes=(8, 5, 11))
    return dict(model.state_dict()), torch.get_rng_state()


def test_shared_random_numbers_do_not_drift_where_batches_differ_in_size() -> None:
    weights, state = shared(False)
    for found, after in on_ranks(2, shared, True):
        assert torch.equal(after, state)
        torch.testing.assert_close(found, weights, rtol=1e-10, atol=1e-10)


def odd_wave() -> int:
    model = net()
    model.drop = Noise()
    torch.manual_seed(3)
    engine = engine_on(MicroSAM(m=3), model, rng="shared")
    steps(engine, 2, sizes=(8, 11))
    assert engine.cost.gradients > 2
    return torch.initial_seed()


def test_a_probe_alone_after_others_leaves_the_global_stream_as_it_was() -> None:
    assert on_ranks(2, odd_wave) == [3, 3]


def with_late_hooks(ranks: bool, unseen: bool) -> dict[str, Tensor]:
    model = net()
    engine = engine_on(SAMPa(), model, ranks=ranks)
    steps(engine, 2)

    def clamp(p: Tensor) -> None:
        assert p.grad is not None
        (p.grad.data if unseen else p.grad).clamp_(-0.01, 0.01)

    for p in model.parameters():
        p.register_post_accumulate_grad_hook(clamp)
    steps(engine, 3, 2)
    return dict(model.state_dict())


@pytest.mark.parametrize("unseen", [False, True])
def test_hooks_that_come_later_change_what_leaves(unseen: bool) -> None:
    expected = with_late_hooks(False, unseen)
    first, second = on_ranks(2, with_late_hooks, True, unseen)
    for name, value in expected.items():
        assert torch.equal(first[name], second[name]), name
        torch.testing.assert_close(first[name], value, rtol=1e-10, atol=1e-10)


def apart() -> str:
    """Rank 0 fails in the last layer to be reached, rank 1 in the first one."""
    model = net()
    engine = engine_on(SAMPa(), model)
    steps(engine, 1)

    def fail(grad: Tensor) -> Tensor:
        raise TripError

    handle = (model.first if torch.distributed.get_rank() == 0 else model.last).weight.register_hook(fail)
    with pytest.raises(TripError):
        engine.backward(batch(1))
    handle.remove()
    try:
        engine.backward(batch(2))
    except (lowland.core.errors.RankError, RuntimeError) as error:
        return type(error).__name__
    return "nothing"


@pytest.mark.slow
def test_ranks_that_failed_apart_do_not_go_on(by_messages: None) -> None:
    ranks = Ranks(2)
    try:
        found = ranks.run(apart)
    except (EOFError, AssertionError):
        found = []  # gloo ends a process that gets a message of another size than it waits for
    finally:
        ranks.end()
    assert "nothing" not in found


def sparse() -> None:
    model = nn.Sequential(nn.Embedding(10, 4, sparse=True), nn.Flatten(), nn.Linear(8, 3))
    engine = engine_on(SAMPa(), model)
    tokens = torch.arange(6).reshape(3, 2)
    with pytest.raises(ParameterError, match="gradients must be dense"):
        engine.backward((tokens, torch.zeros(3, dtype=torch.long)))


def test_a_sparse_gradient_is_named() -> None:
    on_ranks(2, sparse)


def without_batch() -> None:
    engine = engine_on(SAM(), net())
    with pytest.raises(UsageError, match="a mesh must know the batch"):
        next(iter(engine.passes()))


def test_passes_without_a_batch_are_refused() -> None:
    on_ranks(2, without_batch)
