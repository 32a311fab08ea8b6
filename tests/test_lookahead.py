"""What `engine.lookahead` promises against what torch's own optimizers then do, in float64."""

from __future__ import annotations

import copy
import threading
import warnings

import pytest
import torch
from torch import Tensor, nn
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook

from lowland import lookahead
from lowland.errors import ParameterError, UsageError


class Signed(torch.optim.SGD):
    """A subclass that overrides what SGD does: a closed form for SGD would be wrong."""

    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is not None:
                    self.state[p].setdefault("count", torch.zeros(()))
                    self.state[p]["count"] += 1
                    p.sub_(group["lr"] * self.state[p]["count"] * p.grad.sign())


class Listed(torch.optim.Optimizer):
    """Keeps its own references to parameters, as third-party optimizers do."""

    def __init__(self, params, lr=0.1):
        super().__init__(params, {"lr": lr})
        self.every = [p for group in self.param_groups for p in group["params"]]

    @torch.no_grad()
    def step(self, closure=None):
        for p in self.every:
            if p.grad is not None:
                p.add_(p.grad, alpha=-self.param_groups[0]["lr"])


def adam(kind, **options):
    return lambda params: kind(params, lr=0.01, **options)


def sgd(**options):
    return lambda params: torch.optim.SGD(params, **{"lr": 0.1, **options})


CLOSED = {
    "sgd": sgd(),
    "sgd-wd": sgd(weight_decay=0.1),
    "sgd-momentum": sgd(momentum=0.9),
    "sgd-dampening": sgd(momentum=0.9, dampening=0.3, weight_decay=0.1),
    "sgd-nesterov": sgd(momentum=0.9, nesterov=True, weight_decay=0.1),
    "sgd-maximize": sgd(momentum=0.9, maximize=True, weight_decay=0.1),
    "sgd-foreach": sgd(momentum=0.9, foreach=True),
    "sgd-fused": sgd(momentum=0.9, nesterov=True, fused=True, weight_decay=0.1),
    "sgd-tensor-lr": sgd(lr=torch.tensor(0.1, dtype=torch.float64), momentum=0.9),
    "sgd-tensor-lr-1": sgd(lr=torch.tensor([0.1], dtype=torch.float64)),
    **{
        f"{name}-{label}": adam(kind, **options)
        for name, kind in (("adam", torch.optim.Adam), ("adamw", torch.optim.AdamW))
        for label, options in {
            "plain": {},
            "wd": {"weight_decay": 0.1},
            "amsgrad": {"amsgrad": True, "weight_decay": 0.1},
            "maximize": {"maximize": True, "weight_decay": 0.1},
            "foreach": {"foreach": True, "betas": (0.5, 0.6), "eps": 1e-3},
            "single": {"foreach": False, "amsgrad": True},
            "fused": {"fused": True, "weight_decay": 0.1},
        }.items()
    },
    "adamw-tensor-lr": lambda ps: torch.optim.AdamW(
        ps, lr=torch.tensor(0.01, dtype=torch.float64), weight_decay=0.1, foreach=False
    ),
    "adamw-tensor-lr-1": lambda ps: torch.optim.AdamW(
        ps, lr=torch.tensor([0.01], dtype=torch.float64), weight_decay=0.1, foreach=False
    ),
}
DRY = {
    "rmsprop": lambda ps: torch.optim.RMSprop(ps, lr=0.01, momentum=0.9, weight_decay=0.1, centered=True),
    "adagrad": lambda ps: torch.optim.Adagrad(ps, lr=0.1, lr_decay=0.01),
    "adadelta": lambda ps: torch.optim.Adadelta(ps, rho=0.8),
    "nadam": lambda ps: torch.optim.NAdam(ps, lr=0.01, weight_decay=0.1),
    "radam": lambda ps: torch.optim.RAdam(ps, lr=0.01),
    "adamax": lambda ps: torch.optim.Adamax(ps, lr=0.01),
    "rprop": lambda ps: torch.optim.Rprop(ps),
    "asgd": lambda ps: torch.optim.ASGD(ps),
    "subclass": lambda ps: Signed(ps, lr=0.1),
    "listed": lambda ps: Listed([p for group in ps for p in group["params"]]),
}
ALL = CLOSED | DRY
every_optimizer = pytest.mark.parametrize("make", ALL.values(), ids=ALL)


class Case:
    """Two groups with their own learning rate, a frozen parameter and a foreign one inside the optimizer."""

    def __init__(self, make, steps: int):
        self.generator = torch.Generator().manual_seed(0)
        a, b, c, frozen, foreign = (nn.Parameter(self.draw(s)) for s in [(3, 2), (4,), (), (2,), (2,)])
        frozen.requires_grad_(False)
        self.params = [c, a, b]  # not in the optimizer's order
        self.others = [frozen, foreign]
        self.optimizer = make([{"params": [a, frozen, b]}, {"params": [foreign, c]}])
        if len(self.optimizer.param_groups) > 1:
            self.optimizer.param_groups[1]["lr"] = self.optimizer.param_groups[0]["lr"] * 0.5
        for _ in range(steps):
            self.step(self.gradient())

    def draw(self, shape) -> Tensor:
        return torch.randn(shape, generator=self.generator, dtype=torch.float64)

    def gradient(self) -> list[Tensor]:
        return [self.draw(p.shape) for p in self.params]

    def step(self, grad: list[Tensor]) -> list[Tensor]:
        """What the optimizer really does."""
        before = [p.detach().clone() for p in self.params]
        for p, g in zip(self.params, grad, strict=True):
            p.grad = g.clone()
        self.optimizer.step()
        self.optimizer.zero_grad()
        return [p.detach() - b for p, b in zip(self.params, before, strict=True)]

    def trace(self):
        """All that a preview could leave behind."""
        every = self.params + self.others
        names = {id(p): i for i, p in enumerate(every)}
        state = {names[id(p)]: copy.deepcopy(s) for p, s in self.optimizer.state.items()}
        groups = [
            {k: [id(p) for p in v] if k == "params" else copy.deepcopy(v) for k, v in g.items()}
            for g in self.optimizer.param_groups
        ]
        return state, groups, [p.detach().clone() for p in every], [p.grad for p in every]


def assert_unchanged(found, expected) -> None:
    assert type(found) is type(expected)
    if isinstance(found, Tensor):
        assert torch.equal(found, expected)
    elif isinstance(found, dict):
        assert list(found) == list(expected)
        for key in found:
            assert_unchanged(found[key], expected[key])
    elif isinstance(found, list | tuple):
        assert len(found) == len(expected)
        for x, y in zip(found, expected, strict=True):
            assert_unchanged(x, y)
    else:
        assert found == expected


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
    with pytest.raises(UsageError, match=r'RMSprop cannot be copied.*use SAMPa\(lookahead="raw"\) or SGD'):
        lookahead.displacement(case.optimizer, case.params, case.gradient())


def test_an_optimizer_that_needs_a_closure_is_refused_with_a_way_out():
    p = nn.Parameter(torch.ones(2))
    with pytest.raises(UsageError, match=r'LBFGS.*lookahead="raw"'):
        lookahead.displacement(torch.optim.LBFGS([p]), [p], [torch.ones(2)])


@pytest.mark.parametrize("kind", [torch.optim.SGD, torch.optim.AdamW])
def test_single_precision_stays_single(kind):
    p = nn.Parameter(torch.ones(2))
    for lr in (0.1, torch.tensor(0.1, dtype=torch.float64)):
        moves = lookahead.displacement(kind([p], lr=lr, **({"foreach": False} if kind is not torch.optim.SGD else {})), [p], [torch.ones(2)])
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


@pytest.mark.parametrize("key", ["sgd", "sgd-momentum", "adamw-wd"])
def test_momentum_is_zero_before_the_first_step_and_leaves_no_trace(key):
    case = Case(CLOSED[key], 0)
    assert not any(m.any() for m in lookahead.momentum(case.optimizer, case.params))
    assert len(case.optimizer.state) == 0


def test_momentum_of_sgd_without_momentum_is_zero_after_steps():
    case = Case(CLOSED["sgd"], 2)
    assert not any(m.any() for m in lookahead.momentum(case.optimizer, case.params))


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
