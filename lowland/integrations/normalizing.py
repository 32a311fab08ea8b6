"""Measures how a Trainer normalizes its loss, which decides the weight of a part of a micro-batch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from lowland.core.errors import LossError, UsageError
from lowland.engine import Engine
from lowland.integrations.means import mean_unless_equal
from lowland.integrations.temporary import evaluating

REMEDY = (
    "let the method cut between micro-batches only: m=gradient_accumulation_steps, or a divisor of it, with a "
    "smaller per_device_train_batch_size"
)


class Normalization:
    """Measures once whether a Trainer's loss is a sum divided by the step's items, or a mean over the examples.

    The losses of the parts of a micro-batch must add up. A sum divided by the step's items adds up as it is. A mean
    over a part is multiplied by the part's fraction of the micro-batch. In steps 0, 1, 2, 4, 8, … the losses of two
    halves are compared with the loss of the whole, because class weights or a contrastive loss would not add up.

    Args:
        trainer: A Trainer that uses ``transformers.Trainer.compute_loss``.
        compute_loss: This function.
        engine: The engine that cuts the micro-batches.

    Attributes:
        micro_batches: The micro-batches of the current step.
    """

    def __init__(self, trainer: Any, compute_loss: Callable[..., Any], engine: Engine) -> None:
        self.trainer, self.compute_loss, self.engine = trainer, compute_loss, engine
        self.micro_batches: Sequence[dict[str, Any]] = ()
        self._sum: bool | None = None  # None: not known yet
        self._checked_step = -1

    def fraction(self, model: nn.Module, piece: dict[str, Any], rows: int) -> float:
        """The factor of the loss of a part of a micro-batch, so that the parts' losses add up.

        Args:
            model: The model, possibly wrapped.
            piece: The part, with the number of items of its step and the number of rows of its micro-batch.
            rows: The number of rows of the part.

        Raises:
            UsageError: A subclass computes the loss, whose rows may belong together.
            LossError: The loss is neither such a sum nor such a mean.
        """
        self._check_known()
        if self._sum is None:
            self._sum = self._measure(model, piece)
        if self._sum:
            self._check_parts(model, summed=True)
            return 1.0
        labels = piece["inputs"].get("labels")
        if self.trainer.compute_loss_func is not None or not (isinstance(labels, Tensor) and labels.dim() < 2):
            raise LossError(
                "a micro-batch that is cut must have a loss that is a mean over its examples, or a sum divided by "
                f"num_items_in_batch, but this one is a mean over what only the loss function knows; {REMEDY}"
            )
        if not labels.is_floating_point() and bool((labels == -100).any()):
            raise LossError(
                "a micro-batch that is cut must have a loss that is a mean over all its examples, but the label -100 "
                f"leaves examples out; {REMEDY}"
            )
        self._check_parts(model, summed=False)
        return rows / float(piece["rows"])

    def _check_known(self) -> None:
        """Refuse the loss of another class, whose rows may belong together, such as the pairs of DPOTrainer."""
        kinds = type(self.trainer).__mro__
        owner = next(k for k in kinds if "compute_loss" in vars(k))
        if owner.__name__ not in ("Trainer", "SFTTrainer"):
            raise UsageError(
                f"a micro-batch must not be cut where {owner.__name__} computes the loss, because its rows may belong "
                f"together, as pairs do; {REMEDY}"
            )

    def _measure(self, model: nn.Module, piece: dict[str, Any]) -> bool | None:
        """Whether twice the number of items halves the loss; None if the loss is zero, which decides nothing."""
        items = piece["items"]
        if items is None:
            return False
        once, twice = self._losses(model, [(piece["inputs"], items), (piece["inputs"], 2 * items)])
        if not once:
            return None
        if torch.isclose(2 * twice, once, rtol=1e-3, atol=0.0):
            return True
        if torch.isclose(twice, once, rtol=1e-3, atol=0.0):
            return False
        raise LossError(
            "a micro-batch that is cut must have a loss that is a mean over its examples, or a sum divided by "
            f"num_items_in_batch, but this one is a mixture: {float(once):.4g}, and {float(twice):.4g} for twice the "
            f"items; {REMEDY}"
        )

    def _check_parts(self, model: nn.Module, summed: bool) -> None:
        """Compare a micro-batch's loss with the losses of its two halves: with their sum, or with their mean.

        Raises:
            LossError: The two differ, so the losses of parts do not add up.
        """
        step = self.engine.step
        piece = next((p for p in self.micro_batches if (p["rows"] or 0) > 1), None)
        if step & (step - 1) or step == self._checked_step or piece is None:
            return
        self._checked_step = step
        halves = self.engine.batches.chunk(piece["inputs"], 2)
        sizes = [self.engine.batches.size(half) for half in halves]
        full, *parts = self._losses(model, [(part, piece["items"]) for part in (piece["inputs"], *halves)])
        if summed:
            parts = [loss * sum(sizes) / n for n, loss in zip(sizes, parts, strict=True)]
        args = self.trainer.args
        mean = mean_unless_equal(full, parts, sizes, low_precision=args.bf16 or args.fp16)
        if mean is not None:
            raise LossError(
                "a micro-batch that is cut must have a loss that adds up over its examples, but on one micro-batch it "
                f"is {float(full):.6g}, and over its two halves {float(mean):.6g}, as with class weights, or where "
                f"examples are compared; {REMEDY}"
            )

    def _losses(self, model: nn.Module, batches: Sequence[tuple[Any, Any]]) -> list[Tensor]:
        """The losses of batches, each with its number of items, without dropout and without a change of any state."""
        bare = self.trainer.accelerator.unwrap_model(model)
        devices = [p.device for p in bare.parameters()][:1]
        with torch.no_grad(), evaluating(bare), torch.random.fork_rng([d for d in devices if d.type == "cuda"]):
            return [self.compute_loss(self.trainer, bare, dict(b), num_items_in_batch=n) for b, n in batches]
