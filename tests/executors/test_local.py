from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from lowland.core.errors import LossError
from lowland.core.probe import Probe
from lowland.executors.base import Work
from lowland.executors.local import Local, Pass


def bits(params) -> list[torch.Tensor]:
    return [p.detach().clone().view(torch.int32) for p in params]


def assert_bits(params, before) -> None:
    assert all(torch.equal(p.detach().view(torch.int32), b) for p, b in zip(params, before, strict=True))


# Probes


class Net(nn.Module):
    def __init__(self, dtype=torch.float64):
        super().__init__()
        torch.manual_seed(0)
        self.body = nn.Linear(3, 5, dtype=dtype)
        self.unused = nn.Linear(2, 2, dtype=dtype)
        self.head = nn.Linear(5, 2, dtype=dtype)

    def forward(self, x):
        return self.head(torch.tanh(self.body(x)))


def each(model, batch):
    return nn.functional.cross_entropy(model(batch[0]), batch[1], reduction="none")


def mean(model, batch):
    return nn.functional.cross_entropy(model(batch[0]), batch[1])


def batch(count: int = 7, dtype=torch.float64):
    generator = torch.Generator().manual_seed(1)
    return torch.randn(count, 3, generator=generator, dtype=dtype), torch.randint(2, (count,), generator=generator)


def work(model=None, loss_fn=each, *, micro_batch=None, rng="free", scaler=None) -> Work:
    model = Net() if model is None else model
    params = [p for p in model.parameters() if p.requires_grad]
    return Work(model, params, loss_fn=loss_fn, scaler=scaler, micro_batch=micro_batch, rng=rng)


def ask(w: Work, probe: Probe):
    before = bits(w.params) if w.params[0].dtype is torch.float32 else [p.detach().clone() for p in w.params]
    (reading,) = Local().run(w, (probe,))
    after = bits(w.params) if w.params[0].dtype is torch.float32 else list(w.params)
    assert all(torch.equal(a, b) for a, b in zip(after, before, strict=True))
    assert all(p.grad is None for p in w.params)
    assert not reading.loss.requires_grad
    return reading


def random_like(params, scale=0.1):
    generator = torch.Generator().manual_seed(2)
    return [scale * torch.randn(p.shape, generator=generator, dtype=p.dtype) for p in params]


def by_hand(model, b, at=None):
    """The gradient of the mean loss at w + at, by torch.func: no weight is touched."""
    start = {n: p.detach() for n, p in model.named_parameters()}
    moved = start if at is None else {n: p + e for (n, p), e in zip(start.items(), at, strict=True)}

    def loss(values):
        return nn.functional.cross_entropy(torch.func.functional_call(model, values, (b[0],)), b[1])

    return torch.func.grad_and_value(loss)(moved)


@pytest.mark.parametrize("loss_fn", [each, mean])
@pytest.mark.parametrize("moved", [False, True])
@pytest.mark.parametrize("micro_batch", [None, 1, 3, 7, 100])
def test_readings_are_loss_and_gradient_at_the_point(loss_fn, moved, micro_batch):
    if loss_fn is mean and micro_batch in (1, 3):
        with pytest.raises(LossError, match=r"a mean, shape \(\), for a part; return one loss per example"):
            ask(work(loss_fn=mean, micro_batch=micro_batch), Probe(batch()))
        return
    w = work(loss_fn=loss_fn, micro_batch=micro_batch)
    at = random_like(w.params) if moved else None
    reading = ask(w, Probe(batch(), at=at))
    grad, loss = by_hand(w.model, batch(), at)
    # Sums over parts of a batch differ from its mean by rounding.
    torch.testing.assert_close(reading.loss, loss, rtol=1e-13, atol=1e-15)
    for g, expected in zip(reading.grad, grad.values(), strict=True):
        torch.testing.assert_close(g, expected, rtol=1e-12, atol=1e-15)
    if loss_fn is each:
        assert reading.losses.shape == (7,)
        torch.testing.assert_close(reading.losses.mean(), loss, rtol=1e-13, atol=1e-15)
        assert not reading.losses.requires_grad
    else:
        assert reading.losses is None


def test_losses_keep_the_order_of_the_examples():
    parts, whole = ask(work(micro_batch=2), Probe(batch())), ask(work(), Probe(batch()))
    torch.testing.assert_close(parts.losses, whole.losses, rtol=1e-13, atol=1e-15)


def test_several_probes_are_answered_in_order_and_apart():
    w = work()
    at = random_like(w.params)
    first, second, third = Local().run(w, (Probe(batch(3)), Probe(batch(7), at=at), Probe(batch(3))))
    assert torch.equal(first.loss, third.loss)
    assert all(torch.equal(a, b) for a, b in zip(first.grad, third.grad, strict=True))
    assert not torch.equal(first.loss, second.loss)
    assert torch.equal(second.loss, ask(w, Probe(batch(7), at=at)).loss)


def test_a_parameter_that_is_not_reached_reads_zero_and_is_remembered():
    w = work()
    reading = ask(w, Probe(batch()))
    names = [n for n, _ in w.model.named_parameters()]
    assert [n for n, r in zip(names, w.step.reached, strict=True) if not r] == ["unused.weight", "unused.bias"]
    for name, g in zip(names, reading.grad, strict=True):
        assert bool(g.any()) == ("unused" not in name)
    ask(w, Probe(batch(), loss_fn=lambda m, b: m.unused.weight.sum()))
    assert [n for n, r in zip(names, w.step.reached, strict=True) if not r] == [
        "unused.bias"
    ]  # by any probe of the step
    w.begin()
    assert not any(w.step.reached)


def test_losses_only_is_one_forward_without_a_graph():
    w, seen = work(micro_batch=3), []
    w.loss_fn = lambda model, b: seen.append(torch.is_grad_enabled()) or each(model, b)
    at = random_like(w.params)
    reading = ask(w, Probe(batch(), at=at, grad=False))
    assert reading.grad is None
    assert seen == [False] * 3
    assert not any(w.step.reached)
    torch.testing.assert_close(reading.loss, by_hand(w.model, batch(), at)[1], rtol=1e-13, atol=1e-15)


def test_a_probe_s_own_loss_replaces_the_training_loss():
    w = work()
    reading = ask(w, Probe(batch(), loss_fn=lambda m, b: m(b[0]).square().sum(1)))
    assert torch.equal(reading.loss, w.model(batch()[0]).square().sum(1).mean())


@pytest.mark.parametrize("moved", [False, True])
def test_wrt_differentiates_the_chosen_alone(moved):
    w = work()
    at = random_like(w.params) if moved else None
    choice = [True, False, True, True, False, True]
    reading = ask(w, Probe(batch(), at=at, wrt=choice))
    grad, _ = by_hand(w.model, batch(), at)
    for g, expected, chosen in zip(reading.grad, grad.values(), choice, strict=True):
        torch.testing.assert_close(g, expected if chosen else torch.zeros_like(g), rtol=1e-12, atol=1e-15)
    assert w.step.reached == [True, False, False, False, False, True]
    assert all(p.requires_grad for p in w.params)


def test_wrt_nothing_is_zero_and_thaws_all():
    w = work()
    (reading,) = Local().run(w, (Probe(batch(), wrt=[False] * 6),))
    assert not any(g.any() for g in reading.grad)
    assert w.step.reached == [False] * 6
    assert all(p.requires_grad for p in w.params)


@pytest.mark.parametrize("where", ["forward", "backward"])
@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_an_exception_leaves_weights_gradients_and_modes(where, error):
    w = work(nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2)))
    before = bits(w.params)
    buffers = [b.clone() for b in w.model.buffers()]

    def fail(*args):
        raise error

    if where == "backward":
        w.params[0].register_hook(fail)
    else:
        w.model[2].register_forward_hook(fail)
    probe = Probe(batch(dtype=torch.float32), at=random_like(w.params), wrt=[True] * 5 + [False])
    with pytest.raises(error):
        Local().run(w, (probe,))
    assert_bits(w.params, before)
    assert all(torch.equal(a, b) for a, b in zip(w.model.buffers(), buffers, strict=True))
    assert all(p.requires_grad and p.grad is None for p in w.params)


@pytest.mark.parametrize(
    ("moved", "stats", "updates"), [(False, None, 1), (True, None, 0), (True, True, 1), (False, False, 0)]
)
def test_statistics_follow_the_probe(moved, stats, updates):
    w = work(nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2)))
    at = random_like(w.params) if moved else None
    ask(w, Probe(batch(dtype=torch.float32), at=at, stats=stats))
    assert int(w.model[1].num_batches_tracked) == updates
    assert bool(w.model[1].running_mean.any()) == bool(updates)


def test_dropout_is_shared_or_free():
    for rng, same in (("shared", True), ("free", False)):
        w = work(nn.Sequential(nn.Dropout(0.5), nn.Linear(3, 2, dtype=torch.float64)), rng=rng)
        torch.manual_seed(0)
        first, second = Local().run(w, (Probe(batch()), Probe(batch())))
        assert torch.equal(first.losses, second.losses) is same
        w.begin()
        (third,) = Local().run(w, (Probe(batch()),))
        assert not torch.equal(third.losses, first.losses)


def test_tied_weights_move_once_and_sum_their_gradients():
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.a = nn.Linear(3, 3, bias=False, dtype=torch.float64)
            self.b = nn.Linear(3, 3, bias=False, dtype=torch.float64)
            self.b.weight = self.a.weight

        def forward(self, x):
            return self.b(torch.tanh(self.a(x)))

    torch.manual_seed(0)
    w = work(Tied())
    assert len(w.params) == 1
    at = random_like(w.params)
    x, y = batch()
    reading = ask(w, Probe((x, y), at=at))
    moved = (w.params[0].detach() + at[0]).requires_grad_()
    nn.functional.cross_entropy(torch.tanh(x @ moved.T) @ moved.T, y).backward()
    torch.testing.assert_close(reading.grad[0], moved.grad, rtol=1e-12, atol=1e-15)


def test_frozen_parameters_stay_put():
    model = Net()
    model.body.requires_grad_(False)
    w = work(model)
    assert len(w.params) == 4
    seen = []
    w.loss_fn = lambda m, b: seen.append(m.body.weight.clone()) or each(m, b)
    ask(w, Probe(batch(), at=random_like(w.params)))
    assert torch.equal(seen[0], model.body.weight)
    assert model.body.weight.grad is None
    assert not model.body.weight.requires_grad


# Passes that the caller runs


def test_a_pass_reads_what_local_reads():
    w = work()
    at = random_like(w.params)
    expected = ask(w, Probe(batch(), at=at))
    with Pass(w, Probe(batch(), at=at)) as p:
        p.backward(each(w.model, p.batch))
    assert torch.equal(p.reading.loss, expected.loss)
    assert torch.equal(p.reading.losses, expected.losses)
    assert all(torch.equal(a, b) for a, b in zip(p.reading.grad, expected.grad, strict=True))


def test_a_pass_in_parts_with_their_shares():
    w = work()
    x, y = batch()
    with Pass(w, Probe((x, y))) as p:
        p.backward(each(w.model, (x[:3], y[:3])), 3 / 7, x[:3])
        p.backward(each(w.model, (x[3:], y[3:])), 4 / 7, x[3:])
    torch.testing.assert_close(p.reading.loss, mean(w.model, (x, y)).detach(), rtol=1e-13, atol=1e-15)
    for g, expected in zip(p.reading.grad, by_hand(w.model, (x, y))[0].values(), strict=True):
        torch.testing.assert_close(g, expected, rtol=1e-12, atol=1e-15)


# Loss scaling


@pytest.mark.parametrize("micro_batch", [None, 3])
def test_scaled_losses_give_unscaled_readings(micro_batch):
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
    plain, scaled = (
        ask(work(Net(torch.float32), micro_batch=micro_batch, scaler=s), Probe(batch(dtype=torch.float32)))
        for s in (None, scaler)
    )
    assert torch.equal(plain.loss, scaled.loss)
    assert all(torch.equal(a, b) for a, b in zip(plain.grad, scaled.grad, strict=True))


def test_an_overflow_in_any_pass_of_a_step_is_remembered():
    w = work(scaler=torch.amp.GradScaler("cpu", init_scale=4.0))
    ask(w, Probe(batch()))
    assert bool(w.step.finite)
    ask(w, Probe(batch(), loss_fn=lambda m, b: each(m, b) * math.inf))
    assert not bool(w.step.finite)
    ask(w, Probe(batch()))
    assert not bool(w.step.finite)
    w.begin()
    assert w.step.finite is None
