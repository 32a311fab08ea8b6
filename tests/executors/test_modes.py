from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from lowland.executors.modes import SharedRNG, only
from lowland.executors.norm_stats import frozen_stats


class Synced(_BatchNorm):
    """Like SyncBatchNorm, which needs a process group: its own forward, BatchNorm's buffers."""

    def _check_input_dim(self, x):
        pass

    def forward(self, x):
        return super().forward(x) * 1.0


def wide(norm: nn.Module) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    shape = (6, 3, 4, 4) if isinstance(norm, nn.BatchNorm2d | nn.InstanceNorm2d) else (6, 3)
    return 2.0 + 3.0 * torch.randn(shape, generator=generator)


NORMS = {
    "batch1d": lambda: nn.BatchNorm1d(3),
    "batch2d": lambda: nn.BatchNorm2d(3),
    "cumulative": lambda: nn.BatchNorm1d(3, momentum=None),
    "no affine": lambda: nn.BatchNorm1d(3, affine=False),
}
every_norm = pytest.mark.parametrize("make", NORMS.values(), ids=NORMS)


def bits(norm: nn.Module) -> list[torch.Tensor]:
    return [b.clone() for b in norm.buffers()]


def run(norm: nn.Module, x: torch.Tensor) -> torch.Tensor:
    """Forward and backward; the gradient of the input."""
    x = x.clone().requires_grad_()
    norm(x).pow(3).sum().backward()
    return x.grad


@every_norm
@pytest.mark.parametrize("warm", [0, 2])
def test_statistics_stay_though_the_batch_s_own_are_used(make, warm):
    model = nn.Sequential(make())
    x = wide(model[0])
    for _ in range(warm):
        run(model, x + 1)
    buffers, before = list(model.buffers()), bits(model)
    free = run(nn.Sequential(_twin(make, model)), x)
    with frozen_stats(model):
        frozen = run(model, x)
    assert all(torch.equal(a, b) for a, b in zip(model.buffers(), before, strict=True))
    assert all(a is b for a, b in zip(model.buffers(), buffers, strict=True))
    assert torch.equal(frozen, free)  # the very numbers of an ordinary training pass
    run(model, x)  # which does move them
    assert not all(torch.equal(a, b) for a, b in zip(model.buffers(), before, strict=True))


def _twin(make, model):
    twin = make()
    twin.load_state_dict(model[0].state_dict())
    return twin


@every_norm
def test_the_next_ordinary_pass_does_not_know(make):
    seen, unseen = make(), make()
    x = wide(seen)
    with frozen_stats(seen):
        run(seen, x * 5)
    run(seen, x)
    run(unseen, x)
    assert all(torch.equal(a, b) for a, b in zip(seen.buffers(), unseen.buffers(), strict=True))


def test_layers_in_evaluation_use_their_running_statistics():
    model = nn.Sequential(nn.BatchNorm1d(3), nn.BatchNorm1d(3))
    x = wide(model[0])
    run(model, x)
    model[0].eval()
    before, expected = bits(model), model[0](x)
    with frozen_stats(model):
        assert torch.equal(model[0](x), expected)
        assert [m.training for m in model] == [False, True]
    assert all(torch.equal(a, b) for a, b in zip(model.buffers(), before, strict=True))


def test_norms_without_statistics_pass():
    model = nn.Sequential(nn.BatchNorm1d(3, track_running_stats=False), nn.LayerNorm(3), nn.Linear(3, 1))
    with frozen_stats(model):
        run(model, wide(model[0]))


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_statistics_come_back_after_an_exception(error):
    model = nn.BatchNorm1d(3)
    before = bits(model)
    with pytest.raises(error), frozen_stats(model):  # noqa: PT012 - the statistics must have been touched
        run(model, wide(model))
        raise error
    assert all(torch.equal(a, b) for a, b in zip(model.buffers(), before, strict=True))


def test_only_the_chosen_parameters_are_differentiated():
    a, b = nn.Parameter(torch.ones(1)), nn.Parameter(torch.ones(1))
    with only([a, b], [True, False]):
        (2 * a * b).sum().backward()
    assert float(a.grad) == 2.0
    assert b.grad is None
    assert a.requires_grad
    assert b.requires_grad


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_only_is_undone_after_an_exception(error):
    params = [nn.Parameter(torch.ones(1)) for _ in range(3)]
    with pytest.raises(error), only(params, [True, False, False]):
        raise error
    assert all(p.requires_grad for p in params)


def test_only_does_not_thaw_what_is_frozen():
    params = [nn.Parameter(torch.ones(1)) for _ in range(2)]
    params[1].requires_grad_(False)
    with only(params, [True, False]):
        pass
    assert [p.requires_grad for p in params] == [True, False]


def test_only_wants_one_choice_each():
    params = [nn.Parameter(torch.ones(1)) for _ in range(2)]
    with pytest.raises(ValueError), only(params, [False]):
        pass
    assert all(p.requires_grad for p in params)


def test_shared_random_numbers_repeat_within_a_step_and_not_across():
    rng, x = SharedRNG(torch.device("cpu")), torch.ones(64)
    torch.manual_seed(0)

    def masks(passes: int) -> list[torch.Tensor]:
        rng.begin()
        found = []
        for _ in range(passes):
            rng.rewind()
            found.append(nn.functional.dropout(x, 0.5))
        return found

    first, second = masks(3), masks(2)
    assert all(torch.equal(m, first[0]) for m in first)
    assert torch.equal(second[0], second[1])
    assert not torch.equal(first[0], second[0])


def test_the_first_pass_of_a_step_draws_what_it_would_anyway():
    rng = SharedRNG(torch.device("cpu"))
    torch.manual_seed(0)
    expected = [torch.rand(4), torch.rand(4)]
    torch.manual_seed(0)
    for e in expected:
        rng.begin()
        for _ in range(2):
            rng.rewind()
            assert torch.equal(torch.rand(4), e)
