"""Optimizers for large batches, whose steps are as long, relative to each weight matrix, as the learning rate says."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from lowland.core import checks
from lowland.core.errors import ArgumentError


class _Layerwise(Optimizer):
    """The common part: groups are checked, and parameters without a gradient are skipped."""

    def __init__(self, params: Any, **defaults: Any) -> None:
        checks.at_least("lr", defaults["lr"], 0, "take 1e-3")
        checks.at_least("weight_decay", defaults["weight_decay"], 0, "0 decays nothing")
        super().__init__(params, defaults)

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Take one step.

        Args:
            closure: A function that computes the loss and the gradients again; None uses the gradients as they are.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is not None:
                    self._step(p, p.grad, self.state[p], group)
        return loss

    @abstractmethod
    def _step(self, p: Tensor, grad: Tensor, state: dict[str, Any], group: dict[str, Any]) -> None:
        """Change one parameter, and its state, in place."""


class LARS(_Layerwise):
    """SGD with momentum, whose step for a weight matrix is scaled by the ratio of the norms of weight and gradient.

    For a tensor w of two or more dimensions with gradient g::

        ratio = trust * |w| / (|g| + weight_decay * |w|)
        v     = momentum * v + lr * ratio * (g + weight_decay * w)
        w     = w - v

    Biases and the weights of normalization layers have the ratio 1 and no weight decay, as is usual. If |w| or |g| is
    zero, the ratio is 1, too.

    Args:
        params: Parameters or parameter groups.
        lr: Learning rate, >= 0.
        momentum: Factor of the earlier steps, in [0, 1).
        weight_decay: Weight decay of matrices, >= 0.
        trust: The trust coefficient, > 0.

    Reference: You, Gitman, Ginsburg, "Large Batch Training of Convolutional Networks", 2017, arXiv:1708.03888,
    Algorithm 1.
    """

    def __init__(
        self, params: Any, lr: float = 1.0, momentum: float = 0.9, weight_decay: float = 5e-4, trust: float = 1e-3
    ) -> None:
        checks.fraction("momentum", momentum)
        if trust <= 0:
            raise ArgumentError(f"trust must be > 0, but is {trust!r}; take 0.001")
        super().__init__(params, lr=lr, momentum=momentum, weight_decay=weight_decay, trust=trust)

    def _step(self, p: Tensor, grad: Tensor, state: dict[str, Any], group: dict[str, Any]) -> None:
        change = grad
        if p.dim() > 1:
            decay = group["weight_decay"]
            weight, slope = torch.linalg.vector_norm(p), torch.linalg.vector_norm(grad)
            ratio = group["trust"] * weight / (slope + decay * weight)
            ratio = torch.where((weight > 0) & (slope > 0), ratio, torch.ones_like(ratio))
            change = (grad + decay * p) * ratio
        velocity = state.get("momentum_buffer")
        if velocity is None:
            velocity = state["momentum_buffer"] = torch.zeros_like(p)
        velocity.mul_(group["momentum"]).add_(change, alpha=group["lr"])
        p.sub_(velocity)


class LAMB(_Layerwise):
    """AdamW, whose step for a weight matrix is as long as the learning rate times the norm of the matrix.

    For a tensor w with gradient g in step t::

        m = b1 * m + (1 - b1) * g,    v = b2 * v + (1 - b2) * g^2
        u = m / (1 - b1^t) / (sqrt(v / (1 - b2^t)) + eps) + weight_decay * w
        w = w - lr * |w| / |u| * u

    Biases and the weights of normalization layers have the ratio 1 in place of |w| / |u| and no weight decay, as is
    usual. If |w| or |u| is zero, the ratio is 1, too.

    Args:
        params: Parameters or parameter groups.
        lr: Learning rate, >= 0.
        betas: The decays b1 and b2 of the two means, each in [0, 1).
        eps: The smallest divisor, > 0.
        weight_decay: Decoupled weight decay of matrices, >= 0.

    Reference: You et al., "Large Batch Optimization for Deep Learning: Training BERT in 76 minutes", ICLR 2020,
    arXiv:1904.00962, Algorithm 2, with the identity as its scaling function.
    """

    def __init__(
        self,
        params: Any,
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-6,
        weight_decay: float = 0.01,
    ) -> None:
        if not all(0 <= beta < 1 for beta in betas):
            raise ArgumentError(f"betas must be in [0, 1), but are {betas!r}; take (0.9, 0.999)")
        if eps <= 0:
            raise ArgumentError(f"eps must be > 0, but is {eps!r}; take 1e-6")
        super().__init__(params, lr=lr, betas=tuple(betas), eps=eps, weight_decay=weight_decay)

    def _step(self, p: Tensor, grad: Tensor, state: dict[str, Any], group: dict[str, Any]) -> None:
        if not state:
            state.update(step=0, exp_avg=torch.zeros_like(p), exp_avg_sq=torch.zeros_like(p))
        state["step"] += 1
        first, second = group["betas"]
        mean, square = state["exp_avg"].lerp_(grad, 1 - first), state["exp_avg_sq"]
        square.mul_(second).addcmul_(grad, grad, value=1 - second)
        root = (square / (1 - second ** state["step"])).sqrt_().add_(group["eps"])
        change = mean / (1 - first ** state["step"]) / root
        if p.dim() > 1:
            change = change.add_(p, alpha=group["weight_decay"])
            weight, length = torch.linalg.vector_norm(p), torch.linalg.vector_norm(change)
            change = change * torch.where((weight > 0) & (length > 0), weight / length, torch.ones_like(weight))
        p.sub_(change, alpha=group["lr"])
