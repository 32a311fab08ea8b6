from __future__ import annotations

import pytest
import torch
from torch import nn

from lowland import refresh_stats
from lowland.core.errors import ArgumentError, LowlandError


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
