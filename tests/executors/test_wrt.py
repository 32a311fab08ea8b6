"""`Probe.wrt`: gradients of chosen parameters alone, bit for bit those of the full gradient, and less work."""

from __future__ import annotations

import math

import pytest
import torch
from problems import batch, loss_fn, net, same
from torch import nn

from lowland.core.errors import LossError
from lowland.core.probe import Probe
from lowland.executors.base import Work
from lowland.executors.local import Local, Pass
from lowland.executors.modes import only


def work_on(model, loss=loss_fn, *, scaler=None, micro_batch=None) -> Work:
    params = [p for p in model.parameters() if p.requires_grad]
    work = Work(model, params, loss_fn=loss, scaler=scaler, micro_batch=micro_batch, rng="free")
    work.reentrant = False  # as after the first step, which looks for reentrant checkpoints
    return work


def ask(work, wrt=None, at=None, data=None, **kinds):
    """One reading; afterwards the model is as it was."""
    work.begin()
    frozen = [p for p in work.model.parameters() if not p.requires_grad]
    before = [p.detach().clone() for p in work.params]
    (reading,) = Local().run(work, (Probe(batch() if data is None else data, at=at, wrt=wrt, **kinds),))
    assert same([p.detach() for p in work.params], before)
    assert all(p.requires_grad and p.grad is None for p in work.params)
    assert not any(p.requires_grad for p in frozen)
    return reading


def moved(work, scale=0.1):
    generator = torch.Generator().manual_seed(5)
    return [scale * torch.randn(p.shape, generator=generator, dtype=p.dtype) for p in work.params]


def choices(count):
    """Each parameter alone, all but each, halves, none, all."""
    alone = [[i == j for j in range(count)] for i in range(count)]
    halves = [[j % 2 == i for j in range(count)] for i in range(2)]
    return [*alone, *[[not c for c in choice] for choice in alone], *halves, [False] * count, [True] * count]


def assert_chosen(reading, full, choice, reached, work):
    """The chosen have the full gradient's entries, all others zeros; the chosen that are used were reached."""
    for g, expected, chosen, p in zip(reading.grad, full.grad, choice, work.params, strict=True):
        assert g.shape == p.shape
        assert torch.equal(g, expected if chosen else torch.zeros_like(p))
    assert work.step.reached == [c and r for c, r in zip(choice, reached, strict=True)]
    assert torch.equal(reading.loss, full.loss)
    assert torch.equal(reading.losses, full.losses)


@pytest.mark.parametrize("displaced", [False, True])
@pytest.mark.parametrize("kinds", [{}, {"norm": True}, {"odd": True}, {"norm": nn.LayerNorm, "odd": True}], ids=str)
def test_chosen_gradients_are_those_of_the_full_one_bit_for_bit(kinds, displaced):
    # `odd` networks have tied, frozen and unused parameters; BatchNorm's are chosen and not
    work = work_on(net(**kinds))
    at = moved(work) if displaced else None
    full = ask(work, at=at)
    reached = list(work.step.reached)
    assert all(reached) != ("odd" in kinds)
    for choice in choices(len(work.params)):
        assert_chosen(ask(work, choice, at), full, choice, reached, work)


def test_a_choice_may_be_any_sequence():
    work = work_on(net())
    full = ask(work)
    choice = tuple(i < 2 for i in range(len(work.params)))
    assert_chosen(ask(work, choice), full, choice, [True] * len(choice), work)


@pytest.mark.parametrize("micro_batch", [1, 3, 8])
def test_micro_batches_sum_what_was_chosen(micro_batch):
    whole, parts = work_on(net(odd=True)), work_on(net(odd=True), micro_batch=micro_batch)
    for choice in choices(len(whole.params)):
        one, other = ask(whole, choice), ask(parts, choice)
        for g, expected in zip(other.grad, one.grad, strict=True):
            torch.testing.assert_close(g, expected, rtol=1e-12, atol=1e-15)  # parts are summed in another order
        assert parts.step.reached == whole.step.reached


@pytest.mark.parametrize("scale", [1.0, 2.0**12])
def test_scaled_losses_give_unscaled_gradients_of_the_chosen(scale):
    plain = work_on(net(odd=True, dtype=torch.float32))
    scaled = work_on(net(odd=True, dtype=torch.float32), scaler=torch.amp.GradScaler("cpu", init_scale=scale))
    data = batch(dtype=torch.float32)
    for choice in choices(len(plain.params)):
        one, other = ask(plain, choice, data=data), ask(scaled, choice, data=data)
        assert same(one.grad, other.grad)
        assert scaled.step.reached == plain.step.reached
        assert bool(scaled.step.finite)


def test_an_overflow_is_seen_where_it_is_chosen():
    model = net(dtype=torch.float32)
    model.first.bias.register_hook(lambda g: g * math.inf)
    work = work_on(model, scaler=torch.amp.GradScaler("cpu", init_scale=4.0))
    for i, name in enumerate(dict(model.named_parameters())):
        ask(work, [i == j for j in range(len(work.params))], data=batch(dtype=torch.float32))
        assert bool(work.step.finite) == (name != "first.bias")


def test_what_only_unused_parameters_know_is_zero_and_no_error():
    work = work_on(net(odd=True))
    unused = [name.startswith("unused") for name, p in work.model.named_parameters() if p.requires_grad]
    reading = ask(work, unused)
    assert not any(g.any() for g in reading.grad)
    assert not any(work.step.reached)
    assert torch.equal(reading.loss, ask(work).loss)


def test_reached_adds_up_over_the_probes_of_a_step():
    work = work_on(net())
    count = len(work.params)
    first, last = [i == 0 for i in range(count)], [i == count - 1 for i in range(count)]
    Local().run(work, (Probe(batch(), wrt=first), Probe(batch(), wrt=last)))
    assert work.step.reached == [a or b for a, b in zip(first, last, strict=True)]


@pytest.mark.parametrize("choice", [None, [True] * 8])
def test_a_loss_that_knows_no_parameter_is_an_error_where_all_are_asked(choice):
    work = work_on(net(norm=True), lambda model, b: model(b[0]).detach().sum(1))
    assert len(work.params) == 8
    with pytest.raises(LossError, match="needs no gradient"):
        Local().run(work, (Probe(batch(), wrt=choice),))
    assert all(p.requires_grad for p in work.params)


def test_losses_alone_are_the_same_whatever_is_chosen():
    work = work_on(net())
    expected = ask(work, grad=False)
    reading = ask(work, [i == 1 for i in range(len(work.params))], grad=False)
    assert reading.grad is None
    assert torch.equal(reading.losses, expected.losses)
    assert not any(work.step.reached)


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
@pytest.mark.parametrize("where", ["forward", "backward", "loss"])
def test_an_exception_thaws_what_was_left_out_and_nothing_else(where, error):
    def fail(*args):
        raise error

    def lose(model, b):
        return fail() if where == "loss" else loss_fn(model, b)

    model = net(odd=True)
    work = work_on(model, lose)
    if where == "forward":
        model.last.register_forward_hook(fail)
    if where == "backward":
        model.second.weight.register_hook(fail)
    wrt = [name != "first.bias" for name, p in model.named_parameters() if p.requires_grad]
    with pytest.raises(error):
        Local().run(work, (Probe(batch(), at=moved(work), wrt=wrt),))
    assert all(p.requires_grad and p.grad is None for p in work.params)
    assert not any(p.requires_grad for p in model.frozen.parameters())


def test_inside_a_pass_the_others_are_frozen_and_afterwards_not():
    work = work_on(net())
    wrt = [i % 2 == 0 for i in range(len(work.params))]
    with Pass(work, Probe(batch(), wrt=wrt)) as p:
        assert [q.requires_grad for q in work.params] == wrt
        p.backward(loss_fn(work.model, p.batch))
    assert all(q.requires_grad for q in work.params)


def test_what_was_frozen_before_stays_frozen():
    a, b = nn.Parameter(torch.ones(1)), nn.Parameter(torch.ones(1), requires_grad=False)
    with only([a, b], [False, False]):
        assert not a.requires_grad
    assert a.requires_grad
    assert not b.requires_grad


def test_a_caller_s_own_backward_may_do_more_than_was_asked():
    work = work_on(net())
    wrt = [i % 2 == 0 for i in range(len(work.params))]
    full = ask(work)
    work.begin()
    with Pass(work, Probe(batch(), wrt=wrt)) as p:
        for q in work.params:
            q.requires_grad_(True)  # a framework that resets it
        loss = loss_fn(work.model, p.batch).mean()
        loss.backward()
        p.adopt(loss)
    assert work.step.reached == wrt
    for g, expected, chosen in zip(p.reading.grad, full.grad, wrt, strict=True):
        assert torch.equal(g, expected if chosen else torch.zeros_like(g))


# That work is saved


class Product(torch.autograd.Function):
    """`x @ w.T`, which writes down what its backward is asked for."""

    asked: list[tuple[str, bool, bool]] = []  # noqa: RUF012 - cleared by each test

    @staticmethod
    def forward(ctx, x, w, name):
        ctx.save_for_backward(x, w)
        ctx.name = name
        return x @ w.T

    @staticmethod
    def backward(ctx, grad):
        x, w = ctx.saved_tensors
        needs_x, needs_w, _ = ctx.needs_input_grad
        Product.asked.append((ctx.name, needs_x, needs_w))
        return grad @ w if needs_x else None, grad.T @ x if needs_w else None, None


class Chain(nn.Module):
    """Four layers in a row."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.ParameterList(
            [torch.randn(n, m, dtype=torch.float64) for m, n in [(5, 4), (4, 4), (4, 4), (4, 3)]]
        )

    def forward(self, x):
        for i, w in enumerate(self.layers):
            x = torch.tanh(Product.apply(x, w, f"layer {i}"))
        return x


@pytest.mark.parametrize("displaced", [False, True])
@pytest.mark.parametrize(
    ("choice", "asked"),
    [
        # name, gradient of its input, gradient of its weight: from the last layer down to the first chosen one
        ([True] * 4, [(3, True, True), (2, True, True), (1, True, True), (0, False, True)]),
        ([False, False, False, True], [(3, False, True)]),
        ([False, True, False, False], [(3, True, False), (2, True, False), (1, False, True)]),
        ([False, True, False, True], [(3, True, True), (2, True, False), (1, False, True)]),
        ([True, False, False, False], [(3, True, False), (2, True, False), (1, True, False), (0, False, True)]),
        ([False] * 4, []),
    ],
)
def test_backward_does_only_what_the_chosen_need(choice, asked, displaced):
    work = work_on(Chain())
    Product.asked.clear()
    ask(work, choice, moved(work) if displaced else None)
    assert Product.asked == [(f"layer {i}", x, w) for i, x, w in asked]


def test_the_next_full_gradient_is_full_again():
    work = work_on(Chain())
    full = ask(work)
    ask(work, [False, True, False, False])
    assert same(ask(work).grad, full.grad)
