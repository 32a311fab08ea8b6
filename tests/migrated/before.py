"""The old loops for the rows of a table: each makes the optimizer that the row's first cell speaks of."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from migrated.page import STEPS, Row, Trained, calls, trained

SGD = "SGD(model.parameters(), lr=0.1, momentum=0.9)"
WRAPPED = "model.parameters(), torch.optim.SGD, lr=0.1, momentum=0.9"
CLOSURE = """
for inputs, targets in loader:

    def closure():
        optimizer.zero_grad()
        loss = F.cross_entropy(model(inputs), targets)
        loss.backward()
        return loss

    closure()
    optimizer.step(closure)
"""
COMPOSER = """
from composer import Trainer
from composer.algorithms import SAM
from composer.models import ComposerClassifier

module = ComposerClassifier(model, num_classes=4)
named = dict(model=module, train_dataloader=loader, algorithms=[METHOD], optimizers=OPTIMIZER, max_duration="1ep")
OPTIONS.fit()
"""
GSAM = """
from gsam import GSAM, CosineScheduler, LinearScheduler

base = OPTIMIZER
optimizer = METHOD
for inputs, targets in loader:
    optimizer.set_closure(F.cross_entropy, inputs, targets)
    optimizer.step()
    optimizer.update_rho_t()
"""
MSAM = """
from optimizer.msam import MSAM
from optimizer.adamW_msam import AdamW_MSAM

optimizer = METHOD
for inputs, targets in loader:
    F.cross_entropy(model(inputs), targets).backward()
    optimizer.step()
    optimizer.zero_grad()
optimizer.move_back_from_momentumAscent()
"""
OPTAX = """
import jax
from optax import add_decayed_weights, chain, sgd
from optax.contrib import normalize, sam

outer = OPTIMIZER
inner = chain(normalize(), sgd(0.05))
rule = METHOD
state = rule.init(params)
for inputs, targets in loader:

    def loss(params):
        return F.cross_entropy(apply(params, inputs), targets)

    for _ in range(PASSES):
        updates, state = rule.update(jax.grad(loss)(params), state, params)
        params = {name: p + updates[name] for name, p in params.items()}
"""


def wrapped(package: str, method: str) -> Callable[..., Trained]:
    """davda54/sam and pytorch_optimizer, whose optimizers wrap a base optimizer."""

    def run(row: Row, **options: Any) -> Trained:
        call = calls(row.before).get("method", method)
        first = "model, " if call.startswith("WSAM") else ""
        call = call.replace("…", first + WRAPPED)
        return trained(f"from {package} import {call.split('(')[0]}\noptimizer = {call}\n{CLOSURE}", **options)

    return run


def by_composer(row: Row, **options: Any) -> Trained:
    made = {"method": "SAM(rho=0.05)", "optimizer": SGD, "options": "Trainer(…)", **calls(row.before)}
    return _filled(COMPOSER.replace("OPTIONS", made["options"].replace("…", "**named")), made, **options)


def by_gsam(row: Row, **options: Any) -> Trained:
    constant = "GSAM(…, gsam_alpha=0.4, rho_scheduler=LinearScheduler(T, 0.1, 0.1))"
    made = {"method": constant, "optimizer": SGD, **calls(row.before)}
    made["method"] = made["method"].replace("…", "model.parameters(), base, model")
    return _filled(GSAM, made, **options)


def by_msam(row: Row, **options: Any) -> Trained:
    made = {"optimizer": "", **calls(row.before)}
    made["method"] = made["method"].replace("…", "model.parameters(), lr=0.1")
    return _filled(MSAM, made, **options)


def by_optax(row: Row, **options: Any) -> Trained:
    made = {"method": "sam(outer, inner)", "optimizer": "sgd(0.1, 0.9)", **calls(row.before)}
    if made["method"].startswith("chain"):
        made |= {"method": "sam(outer, inner)", "optimizer": made["method"]}
    passes = "3" if "sync_period=3" in made["method"] else "2"
    return _filled(OPTAX.replace("PASSES", passes), made, **options)


def _filled(code: str, made: dict[str, str], **options: Any) -> Trained:
    optimizer = made["optimizer"].replace("…", "model.parameters(), lr=0.1, momentum=0.9")
    code = code.replace("METHOD", made["method"]).replace("OPTIMIZER", optimizer)
    return trained(code, SGD=torch.optim.SGD, T=STEPS, **options)


# By section: the old loop, what the new loop uses where a row names no method, and how closely weights agree.
SECTIONS: dict[str, tuple[Callable[..., Trained], str, float]] = {
    "davda54/sam": (wrapped("sam", "SAM(…, rho=0.05)"), "SAM(rho=0.05)", 1e-12),
    "pytorch_optimizer": (wrapped("pytorch_optimizer", "SAM(…, rho=0.05)"), "SAM(rho=0.05)", 1e-6),
    "composer": (by_composer, "SAM(rho=0.05)", 1e-12),
    "the GSAM release": (by_gsam, "GSAM(rho=0.1, alpha=0.4)", 1e-10),
    "the Momentum-SAM release": (by_msam, "MomentumSAM(rho=0.3)", 1e-10),
    "optax": (by_optax, "SAM(rho=0.05)", 1e-12),
}
