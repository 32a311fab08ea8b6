"""Refuses the set-ups that no integration supports."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from lowland.core.errors import ArgumentError, UsageError
from lowland.core.schedule import Schedule, When
from lowland.engine import lookahead
from lowland.engine.closure import ClosureOptimizer
from lowland.engine.doors import check_method
from lowland.methods.ausam import AUSAM
from lowland.methods.base import Method
from lowland.methods.bisam import BiSAM
from lowland.methods.esam import ESAM
from lowland.methods.functional_sam import FunctionalSAM
from lowland.methods.k_sam import KSAM

# What a mean loss does not give.
NEEDS: dict[type[Method], str] = dict.fromkeys((AUSAM, BiSAM, ESAM, KSAM), "a loss for every example")
NEEDS[FunctionalSAM] = "outputs and criterion apart"
STRATEGIES = ("SingleDeviceStrategy", "DDPStrategy")  # of Lightning
REPLICATED = ("NO", "MULTI_CPU", "MULTI_GPU", "MULTI_XPU", "MULTI_NPU", "MULTI_HPU", "MULTI_MLU", "MULTI_MUSA")


def parts_of(method: Method) -> Iterator[Any]:
    """The method, and all methods, schedules and conditions in its fields and in the fields of inner methods."""
    yield method
    for value in vars(method).values():
        if isinstance(value, Method):
            yield from parts_of(value)
        elif isinstance(value, Schedule | When):
            yield value


def check_options(name: str, given: Iterable[str], allowed: Sequence[str], rest: str) -> None:
    """Refuse options of an engine that the framework decides.

    Args:
        name: The argument, for messages.
        given: The names of the options.
        allowed: The names that the integration takes.
        rest: Who decides the rest, for messages.

    Raises:
        ArgumentError: An option is another one.
    """
    wrong = [option for option in given if option not in allowed]
    if wrong:
        raise ArgumentError(f"{name} must be some of {', '.join(allowed)}, but has {wrong[0]}; {rest}")


def check_mean(method: Method, where: str) -> None:
    """Refuse a method that needs more than the mean loss.

    Args:
        method: The method.
        where: The function or class of the framework that computes the loss, for messages.

    Raises:
        ArgumentError: ``method`` is no method, or needs more than a mean loss.
    """
    check_method(method)
    for part in parts_of(method):
        needed = next((text for kind, text in NEEDS.items() if isinstance(part, kind)), None)
        if needed is not None:
            raise ArgumentError(
                f"method must work with a mean loss, which is all that {where} gives, but {type(part).__name__} needs "
                f"{needed}; take another method, such as SAM, or train in a loop of your own with "
                "Engine.backward(batch)"
            )


def check_optimizer(optimizer: Any) -> None:
    """Refuse a :class:`~lowland.ClosureOptimizer`, in any wrapper.

    Raises:
        UsageError: The optimizer is a ``ClosureOptimizer``.
    """
    inside = lookahead.unwrap(optimizer)
    if isinstance(inside, ClosureOptimizer):
        raise UsageError(
            "optimizer must be the base optimizer, but is a ClosureOptimizer, which would run a method inside a "
            f"method; pass the {type(inside.base).__name__} inside it"
        )


def check_accelerator(accelerator: Any) -> None:
    """Refuse an accelerator whose gradients are not in ``.grad``, or are averaged in a way unknown to the engine.

    Raises:
        UsageError: The accelerator is not supported.
    """
    kind = getattr(accelerator.distributed_type, "name", str(accelerator.distributed_type))
    remedy = "train with DistributedDataParallel, or with FSDP version 2"
    if kind == "FSDP" and getattr(accelerator.state.fsdp_plugin, "fsdp_version", 1) != 2:
        raise UsageError(
            "FSDP must be of version 2, because the flat parameters of version 1 hide the tensors a method works on; "
            "set fsdp_version: 2 in the FSDP plugin or configuration"
        )
    if kind != "FSDP" and kind not in REPLICATED:
        raise UsageError(
            f"distributed_type must be one whose gradients are in .grad, but {kind} keeps them elsewhere; {remedy}"
        )
    config = getattr(accelerator, "parallelism_config", None)
    for name in ("tp", "cp", "sp"):
        if getattr(config, f"{name}_enabled", False):
            raise UsageError(
                f"parallelism_config must divide the batch alone, but {name}_size is {getattr(config, f'{name}_size')};"
                f" leave it at 1 and {remedy}"
            )


def generating(kind: type, base: type) -> str | None:
    """The function of a Trainer that makes examples, by its name; None if all passes of a step see the same examples.

    Args:
        kind: The class of the Trainer.
        base: The class whose own functions make none.
    """
    for owner in kind.__mro__[: kind.__mro__.index(base)]:
        if "_prepare_inputs" in vars(owner):
            return f"{owner.__name__}._prepare_inputs"
        step = inspect.unwrap(vars(owner).get("training_step", len))
        if any("generate" in name for name in getattr(getattr(step, "__code__", None), "co_names", ())):
            return f"{owner.__name__}.training_step"
    return None


def check_lightning(trainer: Any, module: Any, callback: type) -> None:
    """Refuse trainings of Lightning that the callback does not support.

    Args:
        trainer: The Trainer.
        module: The LightningModule.
        callback: The callback's class.

    Raises:
        UsageError: The training is not supported.
    """
    if not module.automatic_optimization:
        raise UsageError(
            "Sharpness takes the place of automatic optimization, but automatic_optimization is False; call "
            "engine.backward(batch) in training_step, with lowland.Engine(method, self.trainer.strategy.model, "
            "optimizer, loss_fn), or leave optimization to Lightning"
        )
    if len(trainer.optimizers) != 1:
        raise UsageError(
            f"configure_optimizers must give one optimizer, but gives {len(trainer.optimizers)}; train with manual "
            "optimization and lowland.Engine, which takes several"
        )
    kind = type(trainer.strategy).__name__
    if kind not in STRATEGIES:
        raise UsageError(
            f"strategy must be one of {', '.join(STRATEGIES)}, but is {kind}, which is not tested, or keeps gradients "
            'elsewhere than in .grad; use strategy="ddp", or fully_shard in a loop with Engine.backward(batch)'
        )
    check_optimizer(trainer.optimizers[0])
    if sum(isinstance(one, callback) for one in trainer.callbacks) > 1:
        raise UsageError(
            "callbacks must have one Sharpness, but have several, of which each would run all passes of the others; "
            "combine methods in one, such as lowland.Late or lowland.Switch"
        )
    if "dataloader_iter" in inspect.signature(module.training_step).parameters:
        raise UsageError(
            "training_step must take the batch, because every pass runs on the same one, but takes dataloader_iter; "
            "write training_step(self, batch, batch_idx)"
        )
    own = type(module).backward.__qualname__
    if own != "LightningModule.backward":
        raise UsageError(
            f"the LightningModule must leave backward to Lightning, but {own} would be passed over; move "
            "what it does to on_before_backward or on_after_backward"
        )
