"""The door for frameworks that insist on ``optimizer.step(closure)``."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from lowland.engine import Engine
from lowland.errors import UsageError
from lowland.lagged import read


class ClosureOptimizer(Optimizer):
    """The engine's method behind torch's own ``step(closure)``.

    The closure does what torch documents: zero the gradients, compute the loss, call backward, return the
    loss. It is called once for every pass of the method. Parameter groups and state are the base optimizer's own, so
    that schedulers and checkpointing libraries find an ordinary optimizer. Save the engine's state beside it.

    ``step()`` without a closure raises, for it would be plain training. Only where every learning rate is 0 it is the
    base step: so distributed checkpoints (DCP) fill an empty state.

    An optimizer that calls the closure itself, such as ``torch.optim.LBFGS``, needs no ClosureOptimizer. Its closure
    zeroes the gradients, calls the engine and returns the loss, and every call of it is a step of the engine::

        def closure():
            lbfgs.zero_grad()
            return engine.backward(batch)

        lbfgs.step(closure)

    Args:
        engine: An engine whose method needs no batch, without a GradScaler.

    Raises:
        UsageError: The method keeps or cuts batches, which a closure hides; the engine has a scaler, whose
            ``step`` refuses closures; or the base optimizer calls the closure itself.

    Example:
        >>> import lowland
        >>> model = torch.nn.Linear(2, 1)
        >>> base = torch.optim.SGD(model.parameters(), lr=0.1)
        >>> optimizer = ClosureOptimizer(lowland.Engine(lowland.SAM(), model, base))
        >>> def closure():
        ...     optimizer.zero_grad()
        ...     loss = model(torch.ones(4, 2)).square().mean()
        ...     loss.backward()
        ...     return loss
        >>> optimizer.step(closure).shape
        torch.Size([])
    """

    def __init__(self, engine: Engine) -> None:
        if engine.method.needs_batch:
            raise UsageError(
                f"{engine.method.kind} keeps or cuts batches, which a closure hides; call engine.backward(batch)"
            )
        if engine.work.scaler is not None:
            raise UsageError(
                "a GradScaler refuses closures, so ClosureOptimizer needs an engine without one; call "
                "engine.backward(batch) and scaler.step(optimizer), or train in bf16"
            )
        _check_base(engine.optimizer)
        self.engine = engine
        self.base = engine.optimizer
        super().__init__(self.base.param_groups, self.base.defaults)

    # Groups and state are shared, also after the base optimizer has loaded a state and made new ones.

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        """The base optimizer's parameter groups."""
        return self.base.param_groups

    @param_groups.setter
    def param_groups(self, groups: list[dict[str, Any]]) -> None:
        pass  # Optimizer.__init__ would start an empty list; the base optimizer's stays

    @property
    def state(self) -> Any:
        """The base optimizer's state."""
        return self.base.state

    @state.setter
    def state(self, state: Any) -> None:
        pass

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group to the base optimizer; the engine then has to be made anew."""
        if not any(param_group is group for group in self.base.param_groups):
            self.base.add_param_group(param_group)

    def state_dict(self) -> dict[str, Any]:
        """The base optimizer's state."""
        return self.base.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load the base optimizer's state."""
        self.base.load_state_dict(state_dict)

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One step of the method. If anything is raised, the engine and ``.grad`` are as before.

        Args:
            closure: Zeroes the gradients, computes the loss, calls backward and returns the loss.

        Returns:
            The loss of the first pass, detached; what the base step returns where every learning rate is 0.

        Raises:
            UsageError: There is no closure, or it returns no loss, calls no backward, or adds to earlier gradients.
        """
        if closure is None:
            _check_idle(self.base)
            return self.base.step()
        params = self.engine.params
        before = _kept(self.engine)
        earlier = [p.grad for p in params]
        first: Any = None
        try:
            for p in params:
                p.grad = None  # what the closure is bound to zero is no part of this step
            for current in self.engine.passes():
                current.sparse = False  # a closure's backward would fail where it reaches none of those asked for
                with current, torch.enable_grad():
                    marks = _marked(params, earlier) if first is None else []
                    loss = closure()
                    _check(loss, marks, params)
                    current.adopt(loss)
                first = loss.detach() if first is None else first
            self.base.step()
        except BaseException:
            _take_back(self.engine, before)
            for p, g in zip(params, earlier, strict=True):
                p.grad = g
            raise
        return first


def _check_base(base: Optimizer) -> None:
    """Refuse optimizers that run the closure as often as they like."""
    name = type(base).__name__
    wanted = [
        p.name
        for p in list(inspect.signature(type(base).step).parameters.values())[1:]
        if p.default is p.empty and p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)
    ]
    if wanted:
        raise UsageError(
            f"the base optimizer must step without a closure, but {name}.step needs {', '.join(wanted)}; call "
            f"{name.lower()}.step(closure) itself, with a closure that calls {name.lower()}.zero_grad(), then "
            "engine.backward(batch), and returns the loss of that"
        )


def _check_idle(base: Optimizer) -> None:
    """Refuse a step without closure that would move weights."""
    lrs = [group.get("lr") for group in base.param_groups]
    if not all(read(lr.count_nonzero()) == 0 if isinstance(lr, Tensor) else lr == 0 for lr in lrs):
        raise UsageError(
            "step needs a closure, but was called without one, which would train without the engine's method; call "
            "step(closure), or engine.backward(batch) and the base optimizer's step()"
        )


def _kept(engine: Engine) -> tuple[Any, ...]:
    """What a step changes in an engine."""
    memory, waiting, rng = dict(engine.memory), dict(engine.lagged.waiting), engine.rng.getstate()
    return memory, waiting, rng, copy.copy(engine.cost), engine.step, engine.loss, engine.aux, engine.work.first


def _take_back(engine: Engine, before: tuple[Any, ...]) -> None:
    engine.memory, engine.lagged.waiting, rng, cost, engine.step, engine.loss, engine.aux, engine.work.first = before
    engine.rng.setstate(rng)
    vars(engine.cost).update(vars(cost))  # whoever holds the cost goes on reading it


def _marked(params: Sequence[Tensor], earlier: Sequence[Tensor | None]) -> list[tuple[Tensor, Tensor]]:
    """Zeros in place of earlier gradients: what happens to them tells whether the closure zeroes."""
    marks = [(p, torch.zeros_like(p)) for p, g in zip(params, earlier, strict=True) if g is not None]
    for p, mark in marks:
        p.grad = mark
    return marks


def _check(loss: Any, marks: Sequence[tuple[Tensor, Tensor]], params: Sequence[Tensor]) -> None:
    if not isinstance(loss, Tensor):
        raise UsageError(f"closure must return the loss, but returned {loss!r}; end it with `return loss`")
    # Adding to a mark changes it once; zeroing it first, a second time; zeroing to None replaces it.
    if marks and not any(p.grad is not mark or mark._version > 1 for p, mark in marks):
        raise UsageError(
            "closure must zero the gradients before backward, but added to earlier ones; call "
            "optimizer.zero_grad() in it, or accumulate with engine.backward(batch)"
        )
    if all(p.grad is None for p in params):
        raise UsageError("closure must call backward, but no parameter has a gradient after it; call loss.backward()")
