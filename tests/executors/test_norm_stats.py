from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from lowland import refresh_stats
from lowland.core.errors import ArgumentError, LowlandError
from lowland.executors import norm_stats


def network(**options) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.BatchNorm1d(3, **options), nn.Linear(3, 2), nn.BatchNorm1d(2, **options))


def loader(batches: int = 4) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [5 + 2 * torch.randn(8, 3, generator=generator) for _ in range(batches)]


@pytest.mark.parametrize("momentum", [0.1, None, 0.9])
def test_statistics_become_plain_averages_over_the_batches(momentum):
    model, data = network(momentum=momentum), loader()
    model(10 * data[0])  # old statistics count for nothing
    refresh_stats(model, data)
    first = model[0]
    torch.testing.assert_close(first.running_mean, torch.stack([x.mean(0) for x in data]).mean(0))
    torch.testing.assert_close(first.running_var, torch.stack([x.var(0) for x in data]).mean(0))
    inner = [model[1](nn.functional.batch_norm(x, None, None, first.weight, first.bias, True)) for x in data]
    torch.testing.assert_close(model[2].running_mean, torch.stack([x.mean(0) for x in inner]).mean(0).detach())
    assert int(first.num_batches_tracked) == len(data)
    assert first.momentum == momentum


def test_loaders_may_give_tuples_or_lists():
    expected, data = network(), loader()
    refresh_stats(expected, data)
    for wrap in (lambda x: (x, torch.zeros(8)), lambda x: [x]):
        model = network()
        refresh_stats(model, (wrap(x) for x in data))
        assert torch.equal(model[0].running_mean, expected[0].running_mean)


def test_modes_are_put_back_one_by_one():
    model = network().eval()
    model[1].train()
    refresh_stats(model, loader())
    assert [m.training for m in model] == [False, True, False]
    assert not model.training


def test_weights_and_their_gradients_are_left_alone():
    model = network()
    before = [p.detach().clone() for p in model.parameters()]
    refresh_stats(model, loader())
    assert all(torch.equal(p, b) for p, b in zip(model.parameters(), before, strict=True))
    assert all(p.grad is None and p.requires_grad for p in model.parameters())


def test_models_without_statistics_are_told():
    model = nn.Sequential(nn.BatchNorm1d(3, track_running_stats=False), nn.LayerNorm(3)).eval()
    with pytest.warns(UserWarning, match="no layer with running statistics"):
        refresh_stats(model, loader())
    assert not model.training


def test_forward_says_how_a_batch_is_run():
    expected, data = network(), loader()
    refresh_stats(expected, data)
    model = network()
    refresh_stats(model, [{"inputs": x} for x in data], forward=lambda m, b: m(b["inputs"]))
    assert all(torch.equal(a, b) for a, b in zip(model.buffers(), expected.buffers(), strict=True))


@pytest.mark.parametrize("wrap", [lambda x: {"inputs": x}, lambda x: ({"inputs": x}, 1), lambda x: (), lambda x: "x"])
def test_batches_that_cannot_be_guessed_ask_for_forward(wrap):
    model = network(momentum=0.3).eval()
    model(loader()[0])
    before = statistics(model)
    with pytest.raises(ArgumentError, match="forward=lambda"):
        refresh_stats(model, [wrap(x) for x in loader()])
    assert all(torch.equal(a, b) for a, b in zip(model.buffers(), before, strict=True))
    assert model[0].momentum == 0.3
    assert not model.training


def test_a_forward_that_is_no_function_is_refused():
    with pytest.raises(ArgumentError, match="forward"):
        refresh_stats(network(), loader(), forward="model")


def broken(data):
    yield data[0]
    raise OSError("disk")


def statistics(model):
    return [b.clone() for b in model.buffers()]


def test_a_loader_that_fails_leaves_statistics_momentum_and_modes():
    model = network(momentum=0.3).eval()
    before = statistics(model)
    with pytest.raises(OSError, match="disk"):
        refresh_stats(model, broken(loader()))
    assert [m.training for m in model] == [False] * 3
    assert model[0].momentum == 0.3
    assert all(torch.equal(a, b) for a, b in zip(model.buffers(), before, strict=True))


def test_an_empty_loader_is_refused_and_changes_nothing():
    model = network()
    model(loader()[0])
    before = statistics(model)
    with pytest.raises(LowlandError, match="loader"):
        refresh_stats(model, [])
    assert all(torch.equal(a, b) for a, b in zip(model.buffers(), before, strict=True))


FP32, FP64, BF16 = torch.float32, torch.float64, torch.bfloat16


@pytest.mark.parametrize(
    "dtypes", [[FP32] * 4, [FP64] * 4, [BF16] * 4, [FP32, FP64, FP32, BF16], [BF16, torch.float16]]
)
def test_statistics_go_into_one_vector_and_back(dtypes):
    torch.manual_seed(0)
    buffers = [torch.randn(n + 1, dtype=FP64).to(dtype) for n, dtype in enumerate(dtypes)]
    before = [b.clone() for b in buffers]
    flat = norm_stats.joined(buffers, torch.device("cpu"))
    assert torch.equal(flat, torch.cat([b.double() for b in buffers]))
    mean = flat * 3 / 7  # of several ranks
    norm_stats.spread_(buffers, mean)
    for b, old, part in zip(buffers, before, torch.split(mean, [len(b) for b in buffers]), strict=True):
        assert torch.equal(b, old.copy_(part))  # rounded as one copy for each buffer would


def test_no_statistics_are_an_empty_vector():
    flat = norm_stats.joined([], torch.device("cpu"))
    assert (flat.shape, flat.dtype) == ((0,), FP64)
    norm_stats.spread_([], flat)


class Launches(TorchDispatchMode):
    """Counts the operations that compute or copy."""

    def __init__(self):
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func._schema.name.removeprefix("aten::")
        self.count += name not in ("view", "reshape", "split_with_sizes", "_unsafe_view")
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("dtype", [FP32, FP64])
def test_launches_do_not_grow_with_the_number_of_layers(dtype):
    counts = []
    for layers in (2, 50):
        buffers = [torch.ones(3, dtype=dtype) for _ in range(layers)]
        with Launches() as launches:
            norm_stats.spread_(buffers, norm_stats.joined(buffers, torch.device("cpu")))
        counts.append(launches.count)
    assert counts[0] == counts[1] <= 4
