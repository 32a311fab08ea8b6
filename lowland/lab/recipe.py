"""How a task and a model are trained: everything but the method, with defaults that can all be overridden."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import Any, Literal

import torch

from lowland.core import checks
from lowland.core.errors import ArgumentError, ParameterError, UnknownNameError

START = 1 / 25  # a warm-up starts at this share of the peak, so that the very first step already moves
# By what SGD's rate and weight decay are divided for Adam-type optimizers where a recipe was made for SGD. Weight decay
# that is a part of the gradient weighs more where the gradient is divided by its size: after two epochs of CIFAR-10,
# ResNet-20, plain Adam(amsgrad=True) at 0.01 had 72.5 % with a tenth of it, AdaSAM 70.7 % with all of it, SGD 73.1 %.
ADAPTIVE_LR, ADAPTIVE_DECAY = 20, 10
TRANSFORMERS = ("vit", "deit", "beit", "swin", "mixer", "xcit", "cait", "eva")


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """The training settings of one run, the same for every method that is compared.

    AdaSAM alone is an exception: see :func:`method_recipe`.

    Args:
        optimizer: Base optimizer that applies a method's gradient; amsgrad is Adam(amsgrad=True).
        lr: Peak learning rate, > 0.
        momentum: SGD's momentum, or the beta1 of the others; in [0, 1).
        nesterov: Nesterov momentum (SGD only).
        weight_decay: Weight decay on all parameters, >= 0; decoupled for AdamW, part of the gradient for the others.
        schedule: After the warm-up: linear to 0 (onecycle), half a cosine to 0, constant, or /10 at 1/2 and 3/4 (step).
        warmup: Share of training in which the learning rate rises linearly to its peak, in [0, 1).
        epochs: Passes over the training set, >= 1.
        batch_size: Examples per step, >= 1.
        label_smoothing: Share of the target spread over all classes, in [0, 1).
        precision: Arithmetic of forward and backward; parameters stay fp32 (autocast); auto is bf16 where it is fast.
        channels_last: Memory layout of images and convolution weights: pixel by pixel, faster for most convolutions.
        clip: Largest norm of the gradient that is applied, > 0; None does not clip.
        accumulate: Parts of a batch that run one after the other, >= 1, to save memory; the step is the whole batch's.
        ema: Decay of an average of the weights, in (0, 1), which is evaluated in their place; None has no average.
    """

    optimizer: Literal["sgd", "adamw", "adam", "amsgrad"] = "sgd"
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
        checks.one_of("optimizer", self.optimizer, ("sgd", "adamw", "adam", "amsgrad"))
        checks.one_of("schedule", self.schedule, ("onecycle", "cosine", "constant", "step"))
        checks.one_of("precision", self.precision, ("fp32", "bf16", "auto"))
        _above_zero("lr", self.lr, "take 0.1 for SGD, 1e-3 for AdamW")
        checks.at_least("weight_decay", self.weight_decay, 0, "0 decays nothing")
        checks.integer("epochs", self.epochs, 1, "take at least one")
        checks.integer("batch_size", self.batch_size, 1, "take 64 or 128")
        for name in ("momentum", "warmup", "label_smoothing"):
            _share(name, getattr(self, name))
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
        known = [field.name for field in dataclasses.fields(self)]
        for name in changes:
            if name not in known:
                raise UnknownNameError("recipe field", name, known)
        return dataclasses.replace(self, **changes)


def fast_bf16(device: str | torch.device = "cpu") -> bool:
    """Whether bf16 is faster than fp32 there: the device computes in it, rather than imitating it.

    On a CPU without the AVX512-BF16 or AMX instructions bf16 works, but takes about twice as long as fp32.
    """
    kind = torch.device(device).type
    if kind == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    if kind == "cpu":
        probes = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
        return any(getattr(torch.cpu, name, lambda: False)() for name in probes)
    return False


def make_optimizer(recipe: Recipe, groups: list[dict[str, Any]]) -> torch.optim.Optimizer:
    """The recipe's optimizer.

    Args:
        recipe: Which one, with its settings.
        groups: Parameter groups, as :meth:`lowland.lab.Task.param_groups` gives them. A group's own settings stay; its
            ``lr`` is multiplied by the schedule as the recipe's is.
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
    kind = torch.optim.AdamW if recipe.optimizer == "adamw" else torch.optim.Adam
    return kind(
        groups,
        lr=recipe.lr,
        betas=(recipe.momentum, 0.999),
        weight_decay=recipe.weight_decay,
        amsgrad=recipe.optimizer == "amsgrad",
    )


def resolved(recipe: Recipe, device: str | torch.device) -> Recipe:
    """The recipe with ``precision="auto"`` decided for a device."""
    if recipe.precision != "auto":
        return recipe
    return recipe.replace(precision="bf16" if fast_bf16(device) else "fp32")


def lr_at(recipe: Recipe, progress: float) -> float:
    """The learning rate when a share ``progress`` of the budget is used up, whatever the budget counts.

    It depends on nothing else, so a resumed run needs no scheduler state. Values outside [0, 1], as of a run that
    overdraws its last second, count as the nearer end.
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
    """The recipe as this method wants it: AdaSAM, also inside another method, is trained with AMSGrad.

    Where the recipe is for SGD it takes a twentieth of the learning rate and a tenth of the weight decay; where that is
    for Adam or AdamW, the recipe's own. AdamW's weight decay is decoupled and larger than a gradient could bear; it
    gives way to the default.

    Args:
        recipe: What the runs of a comparison share.
        method: The method as text.
    """
    if "adasam" not in keys(method) or recipe.optimizer == "amsgrad":
        return recipe
    changes: dict[str, dict[str, Any]] = {
        "sgd": {"lr": recipe.lr / ADAPTIVE_LR, "weight_decay": recipe.weight_decay / ADAPTIVE_DECAY},
        "adam": {},
        "adamw": {"weight_decay": min(recipe.weight_decay, Recipe.weight_decay)},
    }
    return recipe.replace(optimizer="amsgrad", **changes[recipe.optimizer])


def keys(method: str) -> list[str]:
    """The key of a method's text, and of the methods inside it.

    Example:
        >>> keys("late:start=0.5,inner=looksam:k=5")
        ['late', 'looksam']
    """
    return [part.partition(":")[0] for part in method.split("inner=")]


def is_transformer(model: str) -> bool:
    """Whether a model, by its name, is made of attention blocks."""
    name = model.rpartition(":")[2]
    return any(part.startswith(TRANSFORMERS) for part in name.split("_"))


def _above_zero(name: str, value: Any, remedy: str) -> None:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < math.inf:
        raise ArgumentError(f"{name} must be a number > 0, but is {value!r}; {remedy}")


def _share(name: str, value: Any) -> None:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < 1:
        raise ArgumentError(f"{name} must be in [0, 1), but is {value!r}; 0 switches it off")
