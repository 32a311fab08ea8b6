"""Rows of docs/migrate.md that are more than a method with other arguments: what each of them says, run."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from official.files import recorded

import lowland
from migrated.before import SECTIONS
from migrated.page import LOOP, Row, Trained, after, apart, calls, pairs, trained, weights
from migrated.rules import momentum_zero

Check = Callable[[Row], None]
CHECKS: dict[tuple[str, str], Check] = {}
ON_RANKS = [  # rows that tests/test_migrate_ranks.py runs
    ("davda54/sam", "DDP"),
    ("davda54/sam", "DDP, each rank by its own gradient"),
    ("pytorch_optimizer", "DDP, GSAM"),
    ("composer", "DDP"),
    ("the GSAM release", "DDP"),
    ("the Momentum-SAM release", "DDP"),
    ("optax", "several devices, `updates` averaged by `pmean`"),
    ("optax", "several devices, `updates` of each device"),
]
SEEN = 1e-3  # weights move by 0.3 to 2: what differs by this is no rounding


def row(*keys: tuple[str, str]) -> Callable[[Check], Check]:
    """Enter a check for rows, by section and first cell."""

    def enter(check: Check) -> Check:
        CHECKS.update(dict.fromkeys(keys, check))
        return check

    return enter


@row(*[(section, "mixed precision (fp16)") for section in SECTIONS])
def scaled(row: Row) -> None:
    """With a GradScaler the weights are those without one, because the scale is a power of two."""
    assert calls(row.after) == {"options": "Engine(…, scaler=scaler)"}
    method = SECTIONS[row.section][1]
    code = f"""
scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
engine = lowland.Engine(lowland.{method}, model, optimizer, loss_fn, scaler=scaler)
for batch in loader:
    engine.backward(batch)
    largest = max(p.grad.abs().max().item() for p in model.parameters())
    scaler.step(optimizer)
    scaler.update()
    optimizer.zero_grad()
"""
    found = trained(code)
    assert found.names["largest"] > 10  # the gradients were scaled
    assert apart(found.path, after("", method).path) < 1e-12


@row(("davda54/sam", "radius of a group"))
def groups(row: Row) -> None:
    made = '[{"params": model.fc1.parameters(), "rho": 0.05}, {"params": model.fc2.parameters(), "rho": 0.2}]'
    options = "lr=0.1, momentum=0.9, weight_decay=5e-4"
    (before, new), run = pairs()["davda54/sam"], recorded("sam_groups_mlp_sgd").weights
    old = before.replace("SAM(model.parameters(), torch.optim.SGD, rho=0.05", f"SAM({made}, torch.optim.SGD")
    new = new.replace("SGD(model.parameters()", f"SGD({made}")
    assert made in old
    assert made in new
    assert options in new
    assert apart(trained(old).path, run) < 1e-12
    assert apart(trained(new).path, run) < 1e-12


@row(("davda54/sam", "learning rate schedule"))
def scheduled(row: Row) -> None:
    found = []
    for code, cell in zip(pairs()["davda54/sam"], (row.before, row.after), strict=True):
        call = cell.strip("`")
        assert call.startswith("CosineAnnealingLR(")
        top, loop = code.split("\nfor ")
        found.append(
            trained(
                f"{top}\nscheduler = {call}\nfor {loop}    scheduler.step()\n",
                CosineAnnealingLR=torch.optim.lr_scheduler.CosineAnnealingLR,
            )
        )
    assert apart(found[0].path, found[1].path) < 1e-12
    assert apart(found[0].final, trained(pairs()["davda54/sam"][0]).final) > SEEN  # the schedule is seen


@row(*[(section, "loss divided by") for section in SECTIONS])
def divided(row: Row) -> None:
    """One loss per example, their mean, and a ``Loss`` that counts them have the same weights."""
    method = SECTIONS[row.section][1]
    each = after("", method).path
    for losses in ("losses.mean()", "lowland.Loss(losses.sum(), len(losses))"):
        assert apart(each, with_losses(losses, method).path) < 1e-12
    assert apart(each[-1], with_losses("lowland.Loss(losses.sum(), 2 * len(losses))", method).final) > SEEN


@row(("davda54/sam", "loss divided by a sum of weights"))
def weighted(row: Row) -> None:
    top, loop = pairs()["davda54/sam"][0].replace(", weight_decay=5e-4", "").split("\nfor ")
    loop = loop.replace("F.cross_entropy(model(inputs), targets)", row.before.strip("`"))
    found = trained(f"w = {WEIGHTS}\n{top}\nfor {loop}").path
    assert apart(found, with_losses(row.after.strip("`"), "SAM(rho=0.05)", Loss=lowland.Loss).path) < 1e-12
    assert apart(found[-1], after("", "SAM(rho=0.05)").final) > SEEN


@row(("davda54/sam", "BatchNorm statistics"))
def statistics_of_davda54(row: Row) -> None:
    before, new = pairs()["davda54/sam"]
    second = "    F.cross_entropy(model(inputs), targets).backward()\n"
    assert second in before
    frozen = before.replace(second, f"    with momentum_zero(model):\n    {second}")
    (both, twice), (once, count) = (trained(code, "bn").statistics for code in (before, new))
    kept, tracked = trained(frozen, "bn", momentum_zero=momentum_zero).statistics
    assert (twice, tracked, count) == (80, 80, 40)
    assert apart(both, once) > SEEN
    assert apart(kept, once) < 1e-12


@row(("pytorch_optimizer", "BatchNorm statistics"))
def statistics_of_pytorch_optimizer(row: Row) -> None:
    friendly = pairs()["SAM of pytorch_optimizer"][0].replace("SAM", "FriendlySAM")
    for code in (pairs()["SAM of pytorch_optimizer"][0], pairs()["LookSAM of pytorch_optimizer"][0], friendly):
        assert trained(code, "bn").statistics[1] == 80
    for name in ("WSAM of pytorch_optimizer", "GSAM of pytorch_optimizer"):
        (old, _), (new, count) = (trained(code, "bn").statistics for code in pairs()[name])
        assert count == 40
        assert apart(old, new) < 1e-5


@row(("composer", "BatchNorm statistics"))
def statistics_of_composer(row: Row) -> None:
    (both, twice), (once, count) = (trained(code, "bn").statistics for code in pairs()["composer"])
    assert (twice, count) == (48, 40)  # every fifth step has two passes
    assert apart(both, once) > SEEN


@row(("the GSAM release", "BatchNorm statistics"), ("the Momentum-SAM release", "BatchNorm statistics"))
def same_statistics(row: Row) -> None:
    old, new = (trained(code, "bn") for code in pairs()[row.section.replace("the", "The")])
    assert new.statistics[1] == 40
    assert apart(old.statistics[0], new.statistics[0]) < 1e-10
    if "refresh_stats" in row.after:
        batches = [batch[0] for batch in new.names["loader"]]
        lowland.refresh_stats(new.model, batches)
        assert apart(old.statistics[0], new.statistics[0]) > SEEN


@row(("optax", "BatchNorm statistics"))
def one_update_a_step(row: Row) -> None:
    assert trained(pairs()["optax"][1], "bn").statistics[1] == 40


@row(("pytorch_optimizer", "decoupled WSAM"))
def decoupled(row: Row) -> None:
    old, new = pairs()["WSAM of pytorch_optimizer"]
    old = old.replace("decouple=False", "decouple=True")
    assert apart(trained(old).final, trained(new).final) > SEEN
    plain = [re.sub(r",\s+momentum=0\.9", "", code) for code in (old, new)]
    assert not any("momentum" in code for code in plain)
    assert apart(*(trained(code).path for code in plain)) < 1e-6


@row(("pytorch_optimizer", "WSAM's clipping"))
def clipped(row: Row) -> None:
    old, unclipped = pairs()["WSAM of pytorch_optimizer"]
    old = old.replace("decouple=False", "decouple=False, max_norm=0.1")
    clip = row.after.split("`")[1]
    new = unclipped.replace("    optimizer.step()", f"    {clip}\n    optimizer.step()")
    assert clip in new
    found = trained(new, clip_grad_norm_=torch.nn.utils.clip_grad_norm_)
    assert apart(trained(old).final, found.final) > SEEN
    assert apart(found.final, trained(unclipped).final) > SEEN  # clipping is seen


@row(("pytorch_optimizer", "centralized gradients"))
def centralized(row: Row) -> None:
    assert row.after == "none"
    old, method, _ = SECTIONS[row.section]
    assert apart(old(row).final, after("", method).final) > SEEN


@row(("pytorch_optimizer", "Bayesian SAM"))
def bayesian(row: Row) -> None:
    assert row.after == "none"
    code = pairs()["SAM of pytorch_optimizer"][0].replace("import SAM", "import BSAM")
    made = "SAM(model.parameters(), torch.optim.SGD, rho=0.05, lr=0.1, momentum=0.9, weight_decay=5e-4)"
    assert made in code
    found = trained(code.replace(made, "BSAM(model.parameters(), num_data=96, lr=1e-12)"), steps=1)
    assert apart(found.path[0], found.path[1]) > 0.01


@row(("the Momentum-SAM release", "weight decay of SGD"))
def decay_of_sgd(row: Row) -> None:
    old, new = (code.replace("5e-4", "1e-2") for code in pairs()["The Momentum-SAM release"])
    old = trained(old).final
    assert apart(old, trained(new).final) < 1e-10
    assert apart(old, after(row.after, "MomentumSAM(rho=0.3)").final) > SEEN
    made = "MSAM(model.parameters(), lr=0.1, momentum=0.9, rho=0.3)"  # the default is the row's 1e-2
    default = pairs()["The Momentum-SAM release"][0].replace(", weight_decay=5e-4", "")
    assert made in default
    assert apart(old, trained(default).final) == 0


@row(("the Momentum-SAM release", "weight decay of AdamW"))
def decay_of_adamw(row: Row) -> None:
    old, new = pairs()["Momentum-SAM with AdamW"]
    old = trained(old).final
    assert apart(old, trained(new).final) < 1e-10
    before = new.replace("weight_decay=0)", "weight_decay=1e-2)").split("    with torch.no_grad()")[0]
    assert apart(old, trained(before).final) > 1e-6  # by lr^2 times the decay in every step


@row(("the Momentum-SAM release", "evaluation"))
def evaluation(row: Row) -> None:
    """Taken back before every batch and displaced again, the release's weights are lowland's."""
    old, new = pairs()["The Momentum-SAM release"]
    seen: list[Any] = []
    top, loop = old.split("    loss = ")
    watch = "    optimizer.move_back_from_momentumAscent()\n    note()\n    optimizer.move_up_to_momentumAscent()\n"
    model: Any = {}
    code = f"model_of_page['model'] = model\n{top}{watch}    loss = {loop}"
    trained(code, model_of_page=model, note=lambda: seen.append(weights(model["model"])))
    assert apart(np.stack(seen), trained(new).path[:-1]) < 1e-10


WEIGHTS = "torch.tensor([0.1, 0.2, 0.3, 0.4], dtype=torch.float64)"


def with_losses(returned: str, method: str, **names: Any) -> Trained:
    """The new loop with a loss function that returns something else."""
    code = f"""
w = {WEIGHTS}

def other(model, batch):
    targets = batch[1]
    losses = loss_fn(model, batch)
    return {returned}

optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
engine = lowland.Engine(lowland.{method}, model, optimizer, other)
"""
    return trained(code + LOOP, **names)
