"""The training settings of a task and a model, except the method: optimizer, schedule, epochs and the like."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import Any, Literal

import torch

from lowland.core import checks
from lowland.core.errors import ArgumentError, ParameterError, UnknownNameError
from lowland.lab.optimizers import LAMB, LARS

START = 1 / 25  # a warm-up starts at this fraction of the peak learning rate, so that the first step moves the weights
# An SGD recipe's learning rate and weight decay are divided by these numbers for Adam. Adam divides the gradient by its
# size, so weight decay that is added to the gradient has more effect than under SGD. After two epochs of CIFAR-10 with
# ResNet-20, plain Adam(amsgrad=True) at 0.01 had 72.5 % with a tenth of the weight decay, AdaSAM 70.7 % with the full
# weight decay, and SGD 73.1 %.
ADAPTIVE_LR, ADAPTIVE_DECAY = 20, 10
TRANSFORMERS = ("vit", "deit", "beit", "swin", "mixer", "xcit", "cait", "eva")


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """The training settings of one run, which all methods of a comparison share.

    AdaSAM is the only exception, see :func:`method_recipe`.

    Args:
        optimizer: Base optimizer that applies a method's gradient; amsgrad is Adam(amsgrad=True); lars and lamb are for
            batches of thousands.
        lr: Peak learning rate, > 0.
        momentum: SGD's momentum, or beta1 of the other optimizers; in [0, 1).
        nesterov: Nesterov momentum (SGD only).
        weight_decay: Weight decay on all parameters, >= 0, and of lars and lamb on matrices; that of adamw and lamb is
            decoupled, the others add it to the gradient.
        schedule: After the warm-up: linear to 0 (onecycle), half a cosine to 0, constant, or /10 at 1/2 and 3/4 (step).
        warmup: Fraction of the training in which the learning rate rises linearly to its peak, in [0, 1).
        epochs: Passes over the training set, >= 1.
        batch_size: Examples per step, >= 1.
        label_smoothing: Fraction of the target that is spread over all classes, in [0, 1).
        precision: Precision of forward and backward (autocast; parameters stay fp32); auto is bf16 on hardware that
            computes in bf16, else fp32.
        channels_last: Use the channels_last memory format, which is faster for most convolutions.
        clip: Maximum norm to which the gradient is clipped, > 0; None does not clip.
        accumulate: Number of micro-batches of a batch, >= 1, which run one after the other to save memory; the step is
            that of the full batch.
        ema: Decay of an exponential moving average of the weights, in (0, 1), which is evaluated instead of the
            weights; None keeps no average.
    """

    optimizer: Literal["sgd", "adamw", "adam", "amsgrad", "lars", "lamb"] = "sgd"
    lr: float = 0.1
    momentum: float = 0.9
    nesterov: bool = True
    weight_decay: float = 5e-4
    schedule: Literal["onecycle", "cosine", "constant", "step"] = "onecycle"
    warmup: float = 0.25
    epochs: int = 10
    batch_size: int = 128
    label_smoothing: float = 0.0
    precision: Literal["fp32", "bf16", "auto"] = "fp32"
    channels_last: bool = False
    clip: float | None = None
    accumulate: int = 1
    ema: float | None = None

    def __post_init__(self) -> None:
        checks.one_of("optimizer", self.optimizer, ("sgd", "adamw", "adam", "amsgrad", "lars", "lamb"))
        checks.one_of("schedule", self.schedule, ("onecycle", "cosine", "constant", "step"))
        checks.one_of("precision", self.precision, ("fp32", "bf16", "auto"))
        _above_zero("lr", self.lr, "take 0.1 for SGD, 1e-3 for AdamW")
        checks.at_least("weight_decay", self.weight_decay, 0, "0 decays nothing")
        checks.integer("epochs", self.epochs, 1, "take at least one")
        checks.integer("batch_size", self.batch_size, 1, "take 64 or 128")
        for name in ("momentum", "warmup", "label_smoothing"):
            checks.fraction(name, getattr(self, name))
        if self.clip is not None:
            _above_zero("clip", self.clip, "None does not clip")
        checks.integer("accumulate", self.accumulate, 1, "1 runs the batch at once")
        if self.ema is not None and (isinstance(self.ema, bool) or not 0 < self.ema < 1):
            raise ArgumentError(f"ema must be in (0, 1), but is {self.ema!r}; take 0.999, or None for no average")
        if self.optimizer == "sgd" and self.nesterov and self.momentum == 0:
            raise ArgumentError(
                "nesterov must be False where momentum is 0, but is True; set nesterov=False or momentum=0.9"
            )

    def replace(self, **changes: Any) -> Recipe:
        """A copy with these fields changed.

        Raises:
            UnknownNameError: A recipe has no such field.
        """
        fields = [field.name for field in dataclasses.fields(self)]
        for name in changes:
            if name not in fields:
                raise UnknownNameError("recipe field", name, fields)
        return dataclasses.replace(self, **changes)


def fast_bf16(device: str | torch.device = "cpu") -> bool:
    """Whether the device has bf16 instructions, so that bf16 is faster than fp32.

    A CPU without the AVX512-BF16 or AMX instructions emulates bf16, which takes about twice as long as fp32.
    """
    kind = torch.device(device).type
    if kind == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    if kind == "cpu":
        probes = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
        return any(getattr(torch.cpu, name, lambda: False)() for name in probes)
    return False


def make_optimizer(recipe: Recipe, groups: list[dict[str, Any]]) -> torch.optim.Optimizer:
    """Make the recipe's optimizer.

    Args:
        recipe: The optimizer's name and settings.
        groups: Parameter groups, as :meth:`lowland.lab.Task.param_groups` returns them. The settings of a group replace
            the recipe's; the schedule also multiplies the ``lr`` of a group.

    Raises:
        ParameterError: No parameter is trainable.
    """
    if not any(group["params"] for group in groups):
        raise ParameterError("model must have a trainable parameter, but all are frozen; unfreeze some")
    if recipe.optimizer == "sgd":
        return torch.optim.SGD(
            groups,
            lr=recipe.lr,
            momentum=recipe.momentum,
            nesterov=recipe.nesterov,
            weight_decay=recipe.weight_decay,
        )
    if recipe.optimizer == "lars":
        return LARS(groups, lr=recipe.lr, momentum=recipe.momentum, weight_decay=recipe.weight_decay)
    if recipe.optimizer == "lamb":
        return LAMB(groups, lr=recipe.lr, betas=(recipe.momentum, 0.999), weight_decay=recipe.weight_decay)
    kind = torch.optim.AdamW if recipe.optimizer == "adamw" else torch.optim.Adam
    return kind(
        groups,
        lr=recipe.lr,
        betas=(recipe.momentum, 0.999),
        weight_decay=recipe.weight_decay,
        amsgrad=recipe.optimizer == "amsgrad",
    )


def resolved(recipe: Recipe, device: str | torch.device) -> Recipe:
    """The recipe with ``precision="auto"`` replaced by the precision for a device."""
    if recipe.precision != "auto":
        return recipe
    return recipe.replace(precision="bf16" if fast_bf16(device) else "fp32")


def lr_at(recipe: Recipe, progress: float) -> float:
    """The learning rate at a fraction ``progress`` of the budget, for every kind of budget.

    It depends on nothing else, so a resumed run needs no scheduler state. ``progress`` is clamped to [0, 1], because
    the last step of a run can exceed a budget in seconds.
    """
    progress = min(max(progress, 0.0), 1.0)
    if progress < recipe.warmup:
        return recipe.lr * (START + (1 - START) * progress / recipe.warmup)
    rest = (progress - recipe.warmup) / (1 - recipe.warmup)
    if recipe.schedule == "onecycle":
        return recipe.lr * (1 - rest)
    if recipe.schedule == "cosine":
        return recipe.lr * (1 + math.cos(math.pi * rest)) / 2
    if recipe.schedule == "step":
        return recipe.lr * (1.0 if progress < 0.5 else 0.1 if progress < 0.75 else 0.01)
    return recipe.lr


def method_recipe(recipe: Recipe, method: str) -> Recipe:
    """The recipe for one method: AdaSAM, also inside another method, is trained with AMSGrad; others keep the recipe.

    An SGD recipe's learning rate is divided by 20 and its weight decay by 10. An Adam or AdamW recipe keeps its
    learning rate. AdamW's weight decay is reduced to at most the default of a recipe, because decoupled weight decay is
    usually too large to be added to a gradient.

    Args:
        recipe: The recipe that the runs of a comparison share.
        method: The method as text.

    Raises:
        ArgumentError: The recipe's optimizer is lars or lamb, whose learning rate cannot be converted.
    """
    if "adasam" not in keys(method) or recipe.optimizer == "amsgrad":
        return recipe
    changes: dict[str, dict[str, Any]] = {
        "sgd": {"lr": recipe.lr / ADAPTIVE_LR, "weight_decay": recipe.weight_decay / ADAPTIVE_DECAY},
        "adam": {},
        "adamw": {"weight_decay": min(recipe.weight_decay, Recipe.weight_decay)},
    }
    if recipe.optimizer not in changes:
        raise ArgumentError(
            f"adasam needs Adam(amsgrad=True), but the learning rate of {recipe.optimizer} is none for Adam; give "
            "both: adasam@optimizer=amsgrad,lr=0.001"
        )
    return recipe.replace(optimizer="amsgrad", **changes[recipe.optimizer])


def keys(method: str) -> list[str]:
    """The keys of a method's text: of the method itself and of the methods inside it.

    Example:
        >>> keys("late:start=0.5,inner=looksam:k=5")
        ['late', 'looksam']
    """
    return [part.partition(":")[0] for part in method.split("inner=")]


def is_transformer(model: str) -> bool:
    """Whether a model is a transformer, by its name."""
    name = model.rpartition(":")[2]
    return any(part.startswith(TRANSFORMERS) for part in name.split("_"))


def _above_zero(name: str, value: Any, remedy: str) -> None:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < math.inf:
        raise ArgumentError(f"{name} must be a number > 0, but is {value!r}; {remedy}")
