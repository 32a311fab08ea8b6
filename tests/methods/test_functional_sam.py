"""Functional SAM against its twin, in its limits, and with all that a loss function in two parts may be."""

from __future__ import annotations

import functools
from typing import Any

import pytest
import torch
from problems import adamw, batch, in_parts, loss_fn, net, same, sgd, train, weights
from reference import functional_sam, geometry, preconditioned
from reference.follow import BASES, assert_follows, in_groups
from reference.in_parts import InParts
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

import lowland
from lowland import SAM, Adaptive, Criterion, Engine, FunctionalSAM, Loss, Preconditioned
from lowland.core.errors import ArgumentError, LossError, UsageError

PROBLEM = InParts()


@pytest.mark.parametrize("base_key", BASES)
def test_follows_its_twin(base_key: str) -> None:
    assert_follows(FunctionalSAM(rho=0.5), functional_sam.FunctionalSAM, {"rho": 0.5}, base_key, problem=PROBLEM)


def test_follows_its_twin_in_another_ball_and_in_groups() -> None:
    method, fields = FunctionalSAM(geometry=Adaptive()), {"geometry": geometry.adaptive()}
    rhos = [0.9, 0.0, 0.5, 0.5]
    groups = in_groups(rhos)
    twin = functional_sam.FunctionalSAM
    assert_follows(method, twin, fields | {"rho": rhos}, "momentum", problem=PROBLEM, groups=groups)


def test_follows_its_twin_preconditioned() -> None:
    method = FunctionalSAM(rho=0.5, geometry=Preconditioned())
    twin = preconditioned.PreconditionedFunctionalSAM
    assert_follows(method, twin, {"rho": 0.5}, "adamw", problem=PROBLEM)


def test_follows_its_twin_in_micro_batches() -> None:
    twin, fields = functional_sam.FunctionalSAM, {"rho": 0.5}
    assert_follows(FunctionalSAM(rho=0.5), twin, fields, "momentum", problem=PROBLEM, micro_batch=5)


def gradient(method: lowland.Method, loss: Any, model: nn.Module | None = None, **options: Any) -> list[Tensor]:
    model = net() if model is None else model
    engine = Engine(method, model, sgd(model), loss, **options)
    engine.backward(batch())
    return [p.grad.clone() for p in engine.params]


def close(a: list[Tensor], b: list[Tensor]) -> bool:
    return all(torch.allclose(x, y, rtol=1e-12, atol=1e-14) for x, y in zip(a, b, strict=True))


def test_of_a_loss_that_is_linear_in_the_outputs_it_is_sam() -> None:
    linear = Criterion(lambda model, b: model(b[0]), lambda out, b: (out * (1 + b[1][:, None])).sum(1))
    assert close(gradient(FunctionalSAM(rho=0.7), linear), gradient(SAM(rho=0.7), linear))
    assert not close(gradient(FunctionalSAM(rho=0.7), in_parts), gradient(SAM(rho=0.7), in_parts))


def test_of_outputs_that_are_linear_in_the_weights_it_is_the_base_optimizer() -> None:
    def model() -> nn.Module:
        torch.manual_seed(0)
        return nn.Linear(5, 3).double()

    assert close(gradient(FunctionalSAM(rho=3.0), in_parts, model()), gradient(lowland.Plain(), in_parts, model()))
    assert not close(gradient(SAM(rho=3.0), in_parts, model()), gradient(lowland.Plain(), in_parts, model()))


def test_by_hand() -> None:
    # F = (w1 w2, w1), L = F_1^2 / 2 + F_2 at w = (3, 4): F = (12, 3), c = (12, 1), g = c_1 (w2, w1) + c_2 (1, 0).
    class Product(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.w = nn.Parameter(torch.tensor([3.0, 4.0], dtype=torch.float64))

        def forward(self) -> dict[str, Tensor]:
            return {"product": self.w[0] * self.w[1], "first": self.w[:1]}

    loss = Criterion(lambda model, b: model(), lambda out, b: out["product"] ** 2 / 2 + out["first"].sum())
    model = Product()
    engine = Engine(FunctionalSAM(rho=0.1), model, sgd(model), loss)
    assert engine.backward(batch()).item() == 72 + 3
    g = torch.tensor([12 * 4 + 1, 12 * 3], dtype=torch.float64)
    u = model.w.detach() + 0.1 * g / g.norm()
    torch.testing.assert_close(model.w.grad, torch.stack([12 * u[1] + 1, 12 * u[0]]), rtol=1e-12, atol=0)


FORMS = {
    "each": lambda out, b: cross_entropy(out, b[1], reduction="none"),
    "mean": lambda out, b: cross_entropy(out, b[1]),
    "count": lambda out, b: Loss(cross_entropy(out, b[1], reduction="sum"), len(b[1])),
    "weighed": lambda out, b: Loss((cross_entropy(out, b[1], reduction="none") * b[1]).sum(), b[1].sum(), aux=out),
}


@pytest.mark.parametrize("form", ["mean", "count"])
def test_the_reduction_of_the_loss_does_not_matter(form: str) -> None:
    each, other = (Criterion(in_parts.forward, FORMS[name]) for name in ("each", form))
    assert close(gradient(FunctionalSAM(rho=0.7), each), gradient(FunctionalSAM(rho=0.7), other))


@pytest.mark.parametrize("form", ["each", "count", "weighed"])
def test_parts_of_a_batch_are_exact(form: str) -> None:
    loss = Criterion(in_parts.forward, FORMS[form])
    whole = gradient(FunctionalSAM(rho=0.7), loss)
    assert close(gradient(FunctionalSAM(rho=0.7), loss, micro_batch=3), whole)


def test_a_mean_of_a_part_is_refused() -> None:
    with pytest.raises(LossError, match="must return what a part of a batch weighs"):
        gradient(FunctionalSAM(), Criterion(in_parts.forward, FORMS["mean"]), micro_batch=3)


def test_the_auxiliary_output_is_that_of_the_first_pass() -> None:
    model = net()
    engine = Engine(FunctionalSAM(), model, sgd(model), Criterion(in_parts.forward, FORMS["weighed"]))
    engine.backward(batch())
    assert torch.equal(engine.aux, model(batch()[0]))


def test_a_loss_that_couples_the_examples_is_exact() -> None:
    def coupled(out: Tensor, b: Any) -> Tensor:
        return cross_entropy(out - out.mean(0), b[1], reduction="none")

    parts = Criterion(in_parts.forward, coupled)
    whole = Criterion(in_parts.forward, lambda out, b: coupled(out, b).mean())
    assert close(gradient(FunctionalSAM(rho=0.7), parts), gradient(FunctionalSAM(rho=0.7), whole))


def test_several_modules_and_nested_outputs() -> None:
    def made() -> dict[str, nn.Module]:
        torch.manual_seed(0)
        return {"body": nn.Sequential(nn.Linear(5, 4), nn.Tanh()).double(), "head": nn.Linear(4, 3).double()}

    def forward(model: Any, b: Any) -> Any:
        hidden = model["body"](b[0])
        return {
            "logits": model["head"](hidden),
            "more": [hidden, (b[1] > 0)],
            "unused": model["head"](2 * hidden).sum(),
        }

    def criterion(out: Any, b: Any) -> Tensor:
        hidden, positive = out["more"]
        return cross_entropy(out["logits"], b[1], reduction="none") + positive * hidden.square().sum(1)

    model, other = made(), nn.ModuleDict(made())
    groups = [p for m in model.values() for p in m.parameters()]
    engine = Engine(FunctionalSAM(rho=0.7), model, torch.optim.SGD(groups, lr=0.1), Criterion(forward, criterion))
    engine.backward(batch())

    # by torch alone: c at the weights, J at w + e
    params = list(other.parameters())
    here = forward(other, batch())
    at = [here["logits"], here["more"][0]]
    total = criterion(here, batch()).mean()
    c = torch.autograd.grad(total, at, retain_graph=True)
    g = torch.autograd.grad(total, params)
    length = torch.cat([x.reshape(-1) for x in g]).norm()
    with torch.no_grad():
        for p, x in zip(params, g, strict=True):
            p += 0.7 * x / length
    there = forward(other, batch())
    # the total derivative: hidden also feeds the logits, whose derivative c[1] must not hold
    direct = torch.autograd.grad(
        criterion({**here, "logits": here["logits"].detach()}, batch()).mean(), at[1], retain_graph=True
    )[0]
    expected = torch.autograd.grad([there["logits"], there["more"][0]], params, [c[0], direct])
    for p, x in zip(engine.params, expected, strict=True):
        torch.testing.assert_close(p.grad, x, rtol=1e-10, atol=1e-12)  # TINY stands beside the norm


def test_a_loss_scale_leaves_no_trace_and_half_precision_does_not_underflow() -> None:
    def forward(model: nn.Module, b: Any) -> Tensor:
        with torch.autocast("cpu", dtype=torch.float16):
            return model(b[0])

    def run(loss: Any, dtype: torch.dtype, scaler: Any = None) -> list[Tensor]:
        model = net(dtype=dtype)
        engine = Engine(FunctionalSAM(rho=0.5), model, sgd(model), loss, scaler=scaler)
        inputs, targets, _ = batch()
        engine.backward((inputs.to(dtype), targets))
        scale = 1.0 if scaler is None else scaler.get_scale()
        return [p.grad.double() / scale for p in engine.params]

    # c is near 1e-9, far below the smallest number of fp16; the scale lifts the gradients above it.
    small = Criterion(forward, lambda out, b: 1e-8 * cross_entropy(out.float(), b[1], reduction="none"))
    exact = Criterion(in_parts.forward, lambda out, b: 1e-8 * cross_entropy(out, b[1], reduction="none"))
    found = run(small, torch.float32, torch.amp.GradScaler("cpu", init_scale=2.0**24))
    wanted = run(exact, torch.float64)
    for a, b in zip(found, wanted, strict=True):
        assert (a - b).abs().max() <= 0.02 * b.abs().max()  # fp16 has 11 bits


def test_masks_are_shared_with_shared_random_numbers() -> None:
    # linear in the weights but for the mask: only with one mask for both passes it is the plain gradient
    class Masked(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(5, 3).double()

        def forward(self, x: Tensor) -> Tensor:
            return self.layer(nn.functional.dropout(x, 0.5))

    def run(method: lowland.Method, rng: str) -> list[Tensor]:
        torch.manual_seed(3)
        model = Masked()
        engine = Engine(method, model, sgd(model), in_parts, rng=rng)
        engine.backward(batch())
        return [p.grad.clone() for p in engine.params]

    assert close(run(FunctionalSAM(), "shared"), run(lowland.Plain(), "shared"))
    assert not close(run(FunctionalSAM(), "free"), run(lowland.Plain(), "free"))


def test_a_criterion_is_an_ordinary_loss_function_to_all_methods() -> None:
    for method in (lowland.SAMPa(), lowland.KSAM(), lowland.BiSAM()):
        one, other = net(), net()
        for model, loss in ((one, in_parts), (other, loss_fn)):
            train(Engine(method, model, sgd(model), loss), 4)
        assert same(weights(one), weights(other))


def test_switched_with_another_method_it_stays_itself() -> None:
    every = lowland.schedule.every
    model, other = net(), net()
    switch = lowland.Switch(when=every(1), inner=FunctionalSAM(), otherwise=SAM())
    train(Engine(switch, model, adamw(model), in_parts), 4)
    train(Engine(FunctionalSAM(), other, adamw(other), in_parts), 4)
    assert same(weights(model), weights(other))


# What is refused


@pytest.mark.parametrize("loss", [None, loss_fn, functools.partial(loss_fn)])
def test_an_ordinary_loss_function_is_refused(loss: Any) -> None:
    model = net()
    with pytest.raises(UsageError, match=r"loss_fn must be a lowland\.Criterion, but is .*; write loss_fn = lowland"):
        Engine(FunctionalSAM(), model, sgd(model), loss)


class Weighed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(3, dtype=torch.float64))

    def forward(self, out: Tensor, b: Any) -> Tensor:
        return cross_entropy(out * self.scale, b[1], reduction="none")


class Opaque:
    def __init__(self, logits: Tensor) -> None:
        self.logits = logits


def changed(out: Tensor, b: Any) -> Tensor:
    out.mul_(2.0)
    return cross_entropy(out, b[1], reduction="none")


REFUSED: dict[str, tuple[Any, str]] = {
    "penalty": (
        lambda model: Criterion(
            in_parts.forward, lambda out, b: in_parts.criterion(out, b) + model.last.weight.square().sum()
        ),
        r"criterion must depend on trainable tensors through the outputs only, but reaches one of shape \(3, 8\)",
    ),
    "opaque": (
        lambda model: Criterion(lambda model, b: Opaque(model(b[0])), lambda out, b: in_parts.criterion(out.logits, b)),
        "return the result in tensors of a tuple, list or dict",
    ),
    "in place": (lambda model: Criterion(in_parts.forward, changed), "must not change the outputs in place"),
    "complex": (
        lambda model: Criterion(lambda m, b: torch.complex(m(b[0]), m(b[0])), lambda out, b: out.abs().sum(1)),
        r"must be real tensors of this rank, but one is complex; let forward return torch\.view_as_real",
    ),
    "no examples": (
        lambda model: Criterion(lambda m, b: m(b[0]).T, lambda out, b: cross_entropy(out.T, b[1], reduction="none")),
        r"examples along dimension 0 if the loss is one per example, shape \(8,\), but one has shape \(3, 8\); return",
    ),
    "no loss": (lambda model: Criterion(in_parts.forward, lambda out, b: None), "returned a NoneType"),
    "no graph": (lambda model: Criterion(in_parts.forward, lambda out, b: out.detach().sum(1)), "needs no gradient"),
    "matrix": (lambda model: Criterion(in_parts.forward, lambda out, b: out.square()), r"returned shape \(8, 3\)"),
}


@pytest.mark.parametrize(("loss", "message"), REFUSED.values(), ids=REFUSED)
def test_what_would_lose_a_gradient_is_refused(loss: Any, message: str) -> None:
    model = net()
    before = weights(model)
    engine = Engine(FunctionalSAM(), model, sgd(model), loss(model))
    with pytest.raises(LossError, match=message):
        engine.backward(batch())
    assert same(weights(model), before)


def test_trainable_weights_of_the_criterion_are_refused() -> None:
    modules = [net(), Weighed()]
    optimizer = torch.optim.SGD([p for m in modules for p in m.parameters()], lr=0.1)
    loss = Criterion(lambda model, b: model[0](b[0]), lambda out, b: modules[1](out, b))
    with pytest.raises(LossError, match=r"reaches one of shape \(3,\) otherwise, whose gradient would be lost"):
        Engine(FunctionalSAM(), modules, optimizer, loss).backward(batch())

    # As forward computes with them, they are weights like any others.
    within = Criterion(lambda model, b: model[0](b[0]) * model[1].scale, FORMS["each"])
    Engine(FunctionalSAM(), modules, optimizer, within).backward(batch())
    assert modules[1].scale.grad.any()


@pytest.mark.parametrize(
    ("forward", "message"),
    [
        (lambda m, b, n: m(b[0]) if n == 1 else m(b[0])[:, :2], r"same shapes .* but returned \(8, 2\) after \(8, 3\)"),
        (lambda m, b, n: m(b[0]) if n == 1 else [m(b[0])], "same structure at the displaced weights as at the weights"),
    ],
)
def test_outputs_that_differ_between_the_passes_are_refused(forward: Any, message: str) -> None:
    calls: list[int] = []

    def counted(m: nn.Module, b: Any) -> Any:
        calls.append(1)
        return forward(m, b, len(calls))

    model = net()
    engine = Engine(FunctionalSAM(), model, sgd(model), Criterion(counted, FORMS["each"]))
    with pytest.raises(LossError, match=message):
        engine.backward(batch())


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ((None, FORMS["each"]), r"forward must be a function \(model, batch\) -> outputs, but is None; write lambda"),
        ((in_parts.forward, 3), r"criterion must be a function \(outputs, batch\) -> loss, but is 3; write lambda"),
        ((in_parts.forward, nn.CrossEntropyLoss()), "criterion must be a function .*, but is CrossEntropyLoss; write"),
        ((in_parts.forward, nn.CrossEntropyLoss), "criterion must be a function .*, but is CrossEntropyLoss; write"),
        ((in_parts.forward, lambda out: out), "cannot be called so .*too many positional arguments"),
        ((nn.Linear(2, 2), FORMS["each"]), r"forward must be a function .*, but Linear\(.*\) .*cannot be called so"),
    ],
)
def test_parts_that_are_no_functions_of_two_arguments_are_refused(parts: Any, message: str) -> None:
    with pytest.raises(ArgumentError, match=message):
        Criterion(*parts)
