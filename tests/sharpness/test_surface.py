"""What all measures share: everything is restored bit for bit, also after an exception, and what is refused."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from problems import TripError, Wire, batch, loss_fn, net
from torch import Tensor, nn

from lowland.core.errors import ArgumentError, LossError, ParameterError
from lowland.sharpness import (
    average_sharpness,
    critical_sharpness,
    hessian_density,
    hessian_eigenvalues,
    hessian_trace,
    loss_between,
    loss_line,
    loss_plane,
    m_sharpness,
    worst_sharpness,
)

BATCHES = [batch(0, 6), batch(1, 6)]


def between(model: nn.Module, loss: Any, batches: Any, **options: Any) -> Any:
    other = {n: t + 1 if t.is_floating_point() else t for n, t in model.state_dict().items()}
    return loss_between(model, other, loss, batches, points=3, **options)


MEASURES: dict[str, Callable[..., Any]] = {
    "m": lambda *a, **k: m_sharpness(*a, m=4, **k),
    "worst": lambda *a, **k: worst_sharpness(*a, m=4, steps=2, starts=2, adaptive=True, **k),
    "linf": lambda *a, **k: worst_sharpness(*a, m=4, steps=2, norm="linf", **k),
    "average": lambda *a, **k: average_sharpness(*a, m=4, directions=2, **k),
    "eigenvalues": lambda *a, **k: hessian_eigenvalues(*a, tol=0.1, **k),
    "trace": lambda *a, **k: hessian_trace(*a, samples=2, **k),
    "density": lambda *a, **k: hessian_density(*a, depth=3, repeats=1, **k),
    "critical": lambda *a, **k: critical_sharpness(*a, tolerance=0.5, **k),
    "line": lambda *a, **k: loss_line(*a, points=3, **k),
    "plane": lambda *a, **k: loss_plane(*a, points=3, **k),
    "between": between,
}


class Counting(nn.Module):
    """Counts its calls in a buffer and an attribute, in every mode, and depends on the buffer."""

    def __init__(self, inside: nn.Module) -> None:
        super().__init__()
        self.inside = inside
        self.register_buffer("calls", torch.zeros((), dtype=torch.float64))
        self.last: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.inside(x) * (1 + self.calls)
        self.calls += 1  # type: ignore[operator]
        self.last = result.detach()
        return result


def prepared() -> tuple[nn.Module, Callable[[], bool]]:
    """A model with everything that can change, and whether it is as it was."""
    model = Counting(net(norm=True, dropout=0.5, odd=True))
    model.inside.norm.eval()  # type: ignore[operator, union-attr]
    for p in model.parameters():
        p.grad = torch.full_like(p, 0.5) if p.requires_grad else None
    grads = [p.grad for p in model.parameters()]
    state = {name: t.clone() for name, t in model.state_dict().items()}
    modes = [m.training for m in model.modules()]
    flags = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = flags[1]
    noise = torch.get_rng_state()

    def same() -> bool:
        return (
            all(torch.equal(t, state[name]) for name, t in model.state_dict().items())
            and all(p.grad is g for p, g in zip(model.parameters(), grads, strict=True))
            and all(bool((g == 0.5).all()) for g in grads if g is not None)
            and modes == [m.training for m in model.modules()]
            and flags == (torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32)
            and torch.equal(noise, torch.get_rng_state())
        )

    return model, same


@pytest.mark.parametrize("name", MEASURES)
def test_everything_is_restored(name: str) -> None:
    model, same = prepared()
    modes = []

    def loss(model: Any, examples: Any) -> Tensor:
        modes.append((any(m.training for m in model.modules()), torch.backends.cudnn.allow_tf32))
        return loss_fn(model, examples)

    MEASURES[name](model, loss, BATCHES)
    assert same()
    assert set(modes) == {(False, False)}


@pytest.mark.parametrize("name", MEASURES)
@pytest.mark.parametrize("at", [1, 2, 4])
def test_everything_is_restored_after_an_exception(name: str, at: int) -> None:
    model, same = prepared()

    def trip(loss: Tensor) -> Tensor:
        raise TripError

    with pytest.raises(TripError):
        MEASURES[name](model, Wire(at, trip), BATCHES)
    assert same()


@pytest.mark.parametrize("name", MEASURES)
def test_low_precision_frozen_models_and_no_batches_are_refused(name: str) -> None:
    with pytest.raises(ParameterError, match="must be fp32 or fp64"):
        MEASURES[name](net(dtype=torch.bfloat16), loss_fn, BATCHES)
    with pytest.raises(ParameterError, match="must have trainable parameters"):
        MEASURES[name](net().requires_grad_(False), loss_fn, BATCHES)
    with pytest.raises(ArgumentError, match="at least one batch"):
        MEASURES[name](net(), loss_fn, [])


@pytest.mark.parametrize("name", MEASURES)
def test_a_loss_that_is_detached_or_has_a_wrong_shape_is_refused(name: str) -> None:
    def matrix(model: Any, examples: Any) -> Tensor:
        return model(examples[0])

    with pytest.raises(LossError, match=r"shape \(.*\), or their mean"):
        MEASURES[name](net(), matrix, BATCHES)


@pytest.mark.parametrize("name", MEASURES)
def test_one_example_and_any_kind_of_batch(name: str) -> None:
    def loss(model: Any, examples: Any) -> Tensor:
        return loss_fn(model, (examples["x"], examples["y"]))

    one = {"x": batch()[0][:1], "y": batch()[1][:1]}
    MEASURES[name](net(norm=True), loss, iter([one]))


@pytest.mark.parametrize("name", MEASURES)
def test_inside_no_grad(name: str) -> None:
    with torch.no_grad():
        MEASURES[name](net(), loss_fn, BATCHES)
        assert not torch.is_grad_enabled()
