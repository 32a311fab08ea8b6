"""What `engine.lookahead` promises against what torch's own optimizers then do, in float64."""

from __future__ import annotations

import threading
import warnings

import pytest
import torch
from optimizers import ALL, CLOSED, DRY, Case, adam, assert_unchanged
from torch import nn
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook

from lowland.core.at_hand import elsewhere
from lowland.core.errors import ParameterError, UsageError
from lowland.engine import lookahead

every_optimizer = pytest.mark.parametrize("make", ALL.values(), ids=ALL)


def assert_moves(found, expected) -> None:
    for x, y in zip(found, expected, strict=True):
        # `expected` is a difference of weights of size about 1, hence rounded to about 1e-16 absolutely.
        torch.testing.assert_close(x, y, rtol=1e-12, atol=1e-15)


@every_optimizer
@pytest.mark.parametrize("steps", [0, 1, 3])
def test_preview_is_what_the_optimizer_then_does(make, steps):
    case = Case(make, steps)
    grad = case.gradient()
    found = lookahead.displacement(case.optimizer, case.params, grad)
    assert not any(m.requires_grad for m in found)
    assert_moves(found, case.step(grad))


@every_optimizer
@pytest.mark.parametrize("steps", [0, 2])
def test_preview_leaves_no_trace(make, steps):
    case = Case(make, steps)
    before, grad = case.trace(), case.gradient()
    copied = [g.clone() for g in grad]
    moves = lookahead.displacement(case.optimizer, case.params, grad)
    for m in moves:
        m.fill_(99.0)  # neither may what comes out be part of the optimizer
    assert_unchanged(case.trace(), before)
    assert all(torch.equal(a, b) for a, b in zip(grad, copied, strict=True))


@pytest.mark.parametrize("make", CLOSED.values(), ids=CLOSED)
def test_closed_form_equals_dry_run(make):
    case = Case(make, 2)
    grad = case.gradient()
    found = lookahead.displacement(case.optimizer, case.params, grad)
    assert_moves(found, lookahead.dry_run(case.optimizer, case.params, grad))


def test_some_parameters_have_no_state_yet():
    for make in (CLOSED["adamw-amsgrad"], CLOSED["sgd-dampening"]):
        case = Case(make, 2)
        del case.optimizer.state[case.params[1]]
        grad = case.gradient()
        assert_moves(lookahead.displacement(case.optimizer, case.params, grad), case.step(grad))


@every_optimizer
def test_previews_under_a_scheduler_are_silent_and_uncounted(make):
    case = Case(make, 1)
    scheduler = torch.optim.lr_scheduler.StepLR(case.optimizer, 1, gamma=0.5)
    grad = case.gradient()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        lookahead.displacement(case.optimizer, case.params, grad)
    # The scheduler notices steps: had the preview counted as one, this warning would be missing.
    with pytest.warns(UserWarning, match=r"before `optimizer.step\(\)`"):
        scheduler.step()
    assert_moves(lookahead.displacement(case.optimizer, case.params, grad), case.step(grad))


@every_optimizer
def test_no_hook_fires(make):
    case, fired = Case(make, 1), []

    def hook(*args):
        fired.append(args)

    handles = [
        case.optimizer.register_step_pre_hook(hook),
        case.optimizer.register_step_post_hook(hook),
        case.optimizer.register_state_dict_pre_hook(hook),
        register_optimizer_step_pre_hook(hook),
        register_optimizer_step_post_hook(hook),
    ]
    handles += [p.register_post_accumulate_grad_hook(hook) for p in case.params]
    try:
        lookahead.displacement(case.optimizer, case.params, case.gradient())
        assert not fired
        case.optimizer.step()
        assert fired  # the hooks work, and still do
    finally:
        for handle in handles:
            handle.remove()


def test_a_hook_that_cannot_be_copied_does_not_matter():
    class Locked:
        def __init__(self):
            self.lock = threading.Lock()

        def hook(self, *args):
            pass

    case = Case(DRY["rmsprop"], 1)
    case.optimizer.register_step_post_hook(Locked().hook)
    case.optimizer.register_state_dict_pre_hook(Locked().hook)
    grad = case.gradient()
    assert_moves(lookahead.displacement(case.optimizer, case.params, grad), case.step(grad))


def test_what_cannot_be_copied_is_refused_with_a_way_out():
    case = Case(DRY["rmsprop"], 1)
    case.optimizer.param_groups[0]["lock"] = threading.Lock()
    with pytest.raises(UsageError, match=r'RMSprop fails \(.*lock.*\); use SAMPa\(lookahead="raw"\) or SGD'):
        lookahead.displacement(case.optimizer, case.params, case.gradient())


def test_an_optimizer_that_needs_a_closure_is_refused_with_a_way_out():
    p = nn.Parameter(torch.ones(2))
    with pytest.raises(UsageError, match=r'LBFGS.*lookahead="raw"'):
        lookahead.displacement(torch.optim.LBFGS([p]), [p], [torch.ones(2)])


@pytest.mark.parametrize("kind", [torch.optim.SGD, torch.optim.AdamW])
def test_single_precision_stays_single(kind):
    p = nn.Parameter(torch.ones(2))
    for lr in (0.1, torch.tensor(0.1, dtype=torch.float64)):
        moves = lookahead.displacement(kind([p], lr=lr, foreach=False), [p], [torch.ones(2)])
        assert moves[0].dtype is torch.float32


def test_decoupled_decay_of_adam_is_understood():
    try:
        make = adam(torch.optim.Adam, weight_decay=0.1, decoupled_weight_decay=True)
        case = Case(make, 1)
    except TypeError:
        pytest.skip("this torch has no Adam(decoupled_weight_decay=…)")
    grad = case.gradient()
    assert_moves(lookahead.displacement(case.optimizer, case.params, grad), case.step(grad))


@pytest.mark.parametrize("key", ["sgd-momentum", "sgd-tensor-lr-1", "adamw-wd", "rmsprop"])
def test_raw_is_minus_lr_times_gradient(key):
    case = Case(ALL[key], 2)
    before, grad = case.trace(), case.gradient()
    lrs = {id(p): group["lr"] for group in case.optimizer.param_groups for p in group["params"]}
    found = lookahead.raw(case.optimizer, case.params, grad)
    assert_moves(found, [-float(lrs[id(p)]) * g for p, g in zip(case.params, grad, strict=True)])
    assert_unchanged(case.trace(), before)


def test_raw_goes_up_where_the_optimizer_maximizes():
    case = Case(CLOSED["sgd-maximize"], 0)
    grad = case.gradient()
    lrs = {id(p): group["lr"] for group in case.optimizer.param_groups for p in group["params"]}
    expected = [lrs[id(p)] * g for p, g in zip(case.params, grad, strict=True)]
    assert_moves(lookahead.raw(case.optimizer, case.params, grad), expected)


@pytest.mark.parametrize(("key", "buffer"), [("sgd-momentum", "momentum_buffer"), ("adam-wd", "exp_avg")])
def test_momentum_is_a_copy_of_the_buffer(key, buffer):
    case = Case(CLOSED[key], 2)
    found = lookahead.momentum(case.optimizer, case.params)
    for m, p in zip(found, case.params, strict=True):
        assert torch.equal(m, case.optimizer.state[p][buffer])
        m.fill_(9.0)
        assert not torch.equal(m, case.optimizer.state[p][buffer])


@pytest.mark.parametrize("key", ["sgd-momentum", "adamw-wd"])
def test_momentum_is_zero_before_the_first_step_and_leaves_no_trace(key):
    case = Case(CLOSED[key], 0)
    assert not any(m.any() for m in lookahead.momentum(case.optimizer, case.params))
    assert len(case.optimizer.state) == 0


def test_momentum_of_sgd_without_momentum_is_refused():
    case = Case(CLOSED["sgd"], 2)
    with pytest.raises(UsageError, match=r"momentum must be > 0 .*, but is 0 in the SGD at hand; give SGD"):
        lookahead.momentum(case.optimizer, case.params)


def test_momentum_of_others_is_refused():
    case = Case(DRY["rmsprop"], 1)
    with pytest.raises(UsageError, match=r"known for SGD, Adam and AdamW, but the optimizer is RMSprop; use one"):
        lookahead.momentum(case.optimizer, case.params)


def test_unwrap_finds_the_torch_optimizer():
    class Wrapper:
        def __init__(self, optimizer):
            self.optimizer = optimizer

    base = Case(CLOSED["sgd"], 0).optimizer
    assert lookahead.unwrap(Wrapper(Wrapper(base))) is base
    assert lookahead.unwrap(base) is base
    with pytest.raises(ParameterError, match=r"optimizer must be a torch.optim.Optimizer, but is a int; pass the opt"):
        lookahead.unwrap(Wrapper(3))


@pytest.mark.parametrize("many", [1, 30], ids=["few", "many"])
@pytest.mark.parametrize("make", [m for name, m in CLOSED.items() if not name.startswith("sgd")])
def test_step_counts_on_a_device_are_not_read(make, many, monkeypatch):
    """Fused and capturable optimizers count on the device, which no CPU has: here no tensor counts as readable."""
    monkeypatch.setattr(lookahead.adam, "ORDINARY", frozenset())
    weights = [nn.Parameter(torch.randn(3, 2, dtype=torch.float64)) for _ in range(many)]
    optimizer = make(weights)
    for step in range(3):
        for i, p in enumerate(weights):
            p.grad = torch.randn_like(p) if step or i != 1 else None  # the second parameter begins later
        optimizer.step()
    grad = [torch.randn_like(p) for p in weights]
    with elsewhere():
        found = lookahead.displacement(optimizer, weights, grad)
    before = [p.detach().clone() for p in weights]
    for p, g in zip(weights, grad, strict=True):
        p.grad = g
    optimizer.step()
    assert_moves(found, [p.detach() - b for p, b in zip(weights, before, strict=True)])
