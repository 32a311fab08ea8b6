from __future__ import annotations

from dataclasses import fields
from typing import Any

import pytest
import torch
from torch import nn

from lowland.cli.docstrings import parse
from lowland.core.errors import ArgumentError, ParameterError, UnknownNameError
from lowland.lab.budget import Budget
from lowland.lab.config import RunConfig
from lowland.lab.models import MODELS
from lowland.lab.names import make as task_of
from lowland.lab.optimizers import LAMB, LARS
from lowland.lab.recipe import Recipe, fast_bf16, lr_at, make_optimizer, method_recipe
from lowland.methods import METHODS

TASKS = ("digits", "fashion-mnist", "cifar10", "cifar100")


def recipe(task: str, model: str) -> Recipe:
    """As a run on this device has it."""
    made = task_of(task)
    config = RunConfig(
        task=made, model=model, method="sam", seed=0, recipe=made.recipe(model), budget=Budget(limit=1), device="cpu"
    )
    return config.recipe


def groups(model: nn.Module) -> list[dict[str, Any]]:
    return task_of("digits").param_groups(model, Recipe())


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("model", [*MODELS, "torchvision:resnet18", "timm:vit_tiny_patch16_224"])
def test_there_is_a_recipe_for_everything(task: str, model: str) -> None:
    made = recipe(task, model)
    assert made == recipe(task, model)
    assert make_optimizer(made, groups(nn.Linear(2, 2))).param_groups[0]["lr"] == made.lr


def test_default_models_are_known() -> None:
    assert {task: task_of(task).models[0] for task in TASKS} == {
        "digits": "mlp",
        "fashion-mnist": "convnet",
        "cifar10": "resnet20",
        "cifar100": "resnet20",
    }


def test_recipe_of_resnet20_on_cifar10(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lowland.lab.recipe.fast_bf16", lambda _device: True)
    made = recipe("cifar10", "resnet20")
    assert (made.optimizer, made.momentum, made.nesterov) == ("sgd", 0.9, True)
    assert (made.batch_size, made.weight_decay, made.label_smoothing) == (128, 5e-4, 0.0)
    assert (made.schedule, made.warmup, made.lr) == ("onecycle", 0.25, 0.2)
    assert (made.precision, made.channels_last) == ("bf16", True)


def test_bf16_only_where_it_is_fast(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("_is_avx512_bf16_supported", "_is_amx_tile_supported"):
        monkeypatch.setattr(torch.cpu, name, lambda: False, raising=False)
    assert not fast_bf16("cpu")
    assert recipe("cifar10", "resnet20").precision == "fp32"
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: True)
    assert fast_bf16("cpu")
    assert recipe("cifar10", "resnet20").precision == "bf16"
    assert recipe("fashion-mnist", "convnet").precision == "bf16"
    assert recipe("digits", "convnet").precision == "fp32"
    assert recipe("cifar10", "mlp").precision == "fp32"
    assert not fast_bf16("meta")


def test_digits_stay_small() -> None:
    made = recipe("digits", "mlp")
    assert (made.epochs, made.batch_size, made.precision, made.channels_last) == (40, 64, "fp32", False)


def test_deeper_networks_take_smaller_steps() -> None:
    rates = {model: recipe("cifar100", model).lr for model in MODELS if not model.startswith("resnet20-w")}
    convolutional = {"mlp": 0.1, "convnet": 0.2, "resnet20": 0.2, "resnet56": 0.1, "wrn-16-4": 0.1}
    assert rates == convolutional | {"vit-tiny": 0.001}  # AdamW's


def test_transformers_get_adamw() -> None:
    for name in ("timm:vit_tiny_patch16_224", "vit_b_16", "timm:deit3_small_patch16_224", "swin_t"):
        assert recipe("cifar10", name).optimizer == "adamw"
    for name in ("torchvision:resnet18", "convnext_tiny", "timm:levit_128"):
        assert recipe("cifar10", name).optimizer == "sgd"


def test_replace() -> None:
    changed = recipe("digits", "mlp").replace(lr=0.3, epochs=2)
    assert (changed.lr, changed.epochs, changed.batch_size) == (0.3, 2, 64)
    with pytest.raises(UnknownNameError, match="unknown recipe field 'momentm': did you mean 'momentum'"):
        changed.replace(momentm=0.5)
    with pytest.raises(ArgumentError, match="epochs must be an integer >= 1"):
        changed.replace(epochs=0)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("optimizer", "lion"),
        ("schedule", "linear"),
        ("precision", "fp16"),
        ("lr", 0),
        ("lr", -0.1),
        ("lr", float("nan")),
        ("lr", float("inf")),
        ("lr", True),
        ("weight_decay", -1e-4),
        ("weight_decay", float("nan")),
        ("momentum", 1.0),
        ("momentum", -0.1),
        ("warmup", 1.0),
        ("label_smoothing", 1),
        ("label_smoothing", float("nan")),
        ("epochs", 0),
        ("epochs", 2.5),
        ("batch_size", 0),
        ("clip", 0),
        ("clip", -1.0),
    ],
)
def test_bad_values_are_named(field: str, value: Any) -> None:
    with pytest.raises(ArgumentError, match=rf"^{field} must be .*but is {value!r}; "):
        Recipe(**{field: value})


def test_nesterov_needs_momentum() -> None:
    with pytest.raises(ArgumentError, match="nesterov must be False where momentum is 0"):
        Recipe(momentum=0.0)
    assert Recipe(momentum=0.0, nesterov=False).momentum == 0


def test_one_cycle() -> None:
    made = Recipe(lr=1.0, schedule="onecycle", warmup=0.25)
    assert lr_at(made, 0) == pytest.approx(1 / 25)
    assert lr_at(made, 0.125) == pytest.approx(0.52)
    assert lr_at(made, 0.25) == 1.0
    assert lr_at(made, 0.625) == pytest.approx(0.5)
    assert lr_at(made, 1) == 0.0


def test_cosine() -> None:
    made = Recipe(lr=2.0, schedule="cosine", warmup=0.5)
    assert lr_at(made, 0.5) == 2.0
    assert lr_at(made, 0.75) == pytest.approx(1.0)
    assert lr_at(made, 1) == pytest.approx(0.0)


def test_step() -> None:
    made = Recipe(lr=1.0, schedule="step", warmup=0.0)
    found = [lr_at(made, p) for p in (0, 0.49, 0.5, 0.74, 0.75, 1)]
    assert found == pytest.approx([1, 1, 0.1, 0.1, 0.01, 0.01])


def test_constant() -> None:
    made = Recipe(lr=1.0, schedule="constant", warmup=0.0)
    assert {lr_at(made, p / 10) for p in range(11)} == {1.0}


@pytest.mark.parametrize("schedule", ["onecycle", "cosine", "constant", "step"])
def test_schedules_are_clamped_and_bounded(schedule: Any) -> None:
    made = Recipe(lr=0.5, schedule=schedule, warmup=0.1)
    assert lr_at(made, -1) == lr_at(made, 0)
    assert lr_at(made, 1.2) == lr_at(made, 1)
    values = [lr_at(made, p / 1000) for p in range(1001)]
    assert max(values) == pytest.approx(0.5)
    assert min(values) >= 0


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("sgd", torch.optim.SGD),
        ("adam", torch.optim.Adam),
        ("adamw", torch.optim.AdamW),
        ("amsgrad", torch.optim.Adam),
        ("lars", LARS),
        ("lamb", LAMB),
    ],
)
def test_optimizers(name: Any, kind: type) -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))
    model[0].bias.requires_grad_(False)
    made = make_optimizer(Recipe(optimizer=name, lr=0.2, momentum=0.8, weight_decay=0.01), groups(model))
    assert type(made) is kind
    (group,) = made.param_groups
    assert len(group["params"]) == 3  # weight, and BatchNorm's two: decay acts on all that train
    assert (group["lr"], group["weight_decay"]) == (0.2, 0.01)
    if name == "sgd":
        assert (group["momentum"], group["nesterov"]) == (0.8, True)
    elif name == "lars":
        assert group["momentum"] == 0.8
    elif name == "lamb":
        assert group["betas"] == (0.8, 0.999)
    else:
        assert (group["betas"], group["amsgrad"]) == ((0.8, 0.999), name == "amsgrad")


@pytest.mark.parametrize(
    "method", ["adasam", "adasam:rho=0.1", "late:start=0.5,inner=adasam", "stable-sam:inner=adasam"]
)
def test_adasam_gets_the_optimizer_it_is_made_for(method: str) -> None:
    sgd = Recipe(lr=0.2, momentum=0.8)
    assert method_recipe(sgd, method) == sgd.replace(optimizer="amsgrad", lr=0.01, weight_decay=5e-5)
    adam = Recipe(optimizer="adam", lr=3e-4, weight_decay=0.01)
    assert method_recipe(adam, method) == adam.replace(optimizer="amsgrad")
    # 0.05, decoupled, would swamp the gradient as a part of it
    adamw = recipe("cifar10", "vit_b_16")
    assert method_recipe(adamw, method) == adamw.replace(optimizer="amsgrad", weight_decay=5e-4)
    assert method_recipe(adamw.replace(weight_decay=0.0), method).weight_decay == 0
    own = Recipe(optimizer="amsgrad", lr=0.01)
    assert method_recipe(own, method) == own


@pytest.mark.parametrize("method", [*(key for key in METHODS if key != "adasam"), "late:inner=asam"])
def test_every_other_method_shares_the_recipe(method: str) -> None:
    assert method_recipe(Recipe(), method) == Recipe()


def test_optimizer_of_a_frozen_model() -> None:
    with pytest.raises(ParameterError, match="model must have a trainable parameter"):
        make_optimizer(Recipe(), groups(nn.Linear(2, 2).requires_grad_(False)))


def test_every_field_is_documented() -> None:
    assert set(parse(Recipe).fields) == {field.name for field in fields(Recipe)}


@pytest.mark.parametrize(("field", "value"), [("accumulate", 0), ("ema", 0.0), ("ema", 1.0), ("ema", True)])
def test_bad_values_of_accumulation_and_average(field: str, value: Any) -> None:
    with pytest.raises(ArgumentError, match=rf"^{field} must be .*but is {value!r}; "):
        Recipe(**{field: value})


def test_groups_keep_their_own_rates() -> None:
    first, second = nn.Linear(2, 2), nn.Linear(2, 2)
    made = make_optimizer(Recipe(lr=0.1), [{"params": first.parameters()}, {"params": second.parameters(), "lr": 0.02}])
    assert [group["lr"] for group in made.param_groups] == [0.1, 0.02]
