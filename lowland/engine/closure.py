"""``ClosureOptimizer``, for frameworks that call ``optimizer.step(closure)``."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from lowland.core.errors import ArgumentError, UsageError
from lowland.engine import Engine, doors, state


class ClosureOptimizer(Optimizer):
    """An optimizer whose ``step(closure)`` takes a step of the engine's method.

    The closure zeroes the gradients, computes the loss, calls backward and returns the loss, as torch documents. It is
    called once for every pass of the method. ``step()`` without a closure is refused, because it would train without
    the method, unless every learning rate is 0: checkpointing libraries make an optimizer's state with such a step.
    Parameter groups and state are the base optimizer's. Save the engine's state in addition.

    An optimizer that calls its closure itself, such as LBFGS, needs no ClosureOptimizer. Each call of the closure is
    one step of the method::

        def closure():
            lbfgs.zero_grad()
            return engine.backward(batch)

        lbfgs.step(closure)

    Args:
        engine: An engine whose method needs no batch, with one optimizer, without a GradScaler.

    Raises:
        ArgumentError: ``engine`` is not an Engine.
        UsageError: The method needs the batch, which a closure does not show; the engine has several optimizers, or an
            optimizer that calls closures itself; or the engine has a scaler, whose ``step`` refuses closures.

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
        if not isinstance(engine, Engine):
            raise ArgumentError(
                f"engine must be an Engine, but is {engine!r}; write ClosureOptimizer(Engine(SAM(), model, base))"
            )
        if engine.method.needs_batch:
            raise UsageError(
                f"{engine.method.kind} keeps, cuts or reads batches, which a closure hides; call engine.backward(batch)"
            )
        if engine.work.scaler is not None:
            raise UsageError(
                "a GradScaler refuses closures, so ClosureOptimizer needs an engine without one; call "
                "engine.backward(batch) and scaler.step(optimizer), or train in bf16"
            )
        if len(engine.optimizers) > 1:
            raise UsageError(
                f"ClosureOptimizer needs an engine with one optimizer, but this one has {len(engine.optimizers)}; call "
                "engine.backward(batch) and the step of each of them"
            )
        doors.check_closure_free(engine.optimizers)
        if isinstance(engine.optimizer, ClosureOptimizer):
            raise UsageError(
                "ClosureOptimizer needs an engine on an ordinary optimizer, but its optimizer is a ClosureOptimizer, "
                "which would run a method in a method; make the engine with the base optimizer"
            )
        self.engine = engine
        self.base = engine.optimizer
        super().__init__(self.base.param_groups, self.base.defaults)

    def __getstate__(self) -> dict[str, Any]:
        """Refuse copies, which would run the method on the old model.

        Raises:
            UsageError: Always.
        """
        raise UsageError(
            "ClosureOptimizer must not be copied or pickled, because its engine and model would not go along; copy "
            "model and base optimizer, and make Engine and ClosureOptimizer of the copies"
        )

    # Properties, because load_state_dict of the base optimizer makes new groups and a new state.

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        """The base optimizer's parameter groups."""
        return self.base.param_groups

    @param_groups.setter
    def param_groups(self, groups: list[dict[str, Any]]) -> None:
        pass  # Optimizer.__init__ assigns an empty list; the base optimizer's list stays

    @property
    def state(self) -> Any:
        """The base optimizer's state."""
        return self.base.state

    @state.setter
    def state(self, state: Any) -> None:
        pass

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group to the base optimizer; afterwards a new engine is needed."""
        if not any(param_group is group for group in self.base.param_groups):
            self.base.add_param_group(param_group)

    def state_dict(self) -> dict[str, Any]:
        """The base optimizer's state."""
        return self.base.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load the base optimizer's state."""
        self.base.load_state_dict(state_dict)

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Take one step of the method and of the base optimizer; without a closure, of the base optimizer only.

        Args:
            closure: A function that zeroes the gradients, computes the loss, calls backward and returns the loss; None
                is allowed only if every learning rate is 0.

        Returns:
            The loss of the first pass, detached; None without a closure.

        Raises:
            ArgumentError: ``closure`` is not callable.
            UsageError: There is no closure and a learning rate is not 0; or the closure returns no loss, does not call
                backward, or does not zero the gradients.
        """
        if closure is None:
            self._check_idle()
            return self.base.step()
        if not callable(closure):
            raise ArgumentError(
                f"closure must be a function without arguments, but is a {type(closure).__name__}; pass the function "
                "that computes the loss, not what it returns"
            )
        earlier = [p.grad for p in self.engine.params]
        restore = state.restorer(self.engine)
        self.engine.work.buffers.called(closure)
        try:
            first = self._run(closure, earlier)
            self._base_step()
        except BaseException:
            restore()
            for p, g in zip(self.engine.params, earlier, strict=True):
                p.grad = g
            raise
        return first

    def _base_step(self) -> None:
        try:
            self.base.step()
        except Exception as error:
            kind = type(self.base).__name__
            error.add_note(
                f"ClosureOptimizer has run the closure for every pass of the method, and then calls {kind}.step() "
                f"without one; if {kind} needs a closure, call {kind}.step(closure) without ClosureOptimizer, with a "
                "closure that zeroes the gradients, calls engine.backward(batch) and returns the loss"
            )
            raise

    def _check_idle(self) -> None:
        """Refuse a step without a closure unless all learning rates are 0; DCP takes such a step to make a state."""
        lrs = [group.get("lr") for group in self.base.param_groups]
        if any(lr is None or bool(torch.as_tensor(lr != 0).any()) for lr in lrs):
            raise UsageError(
                "step needs the closure, but was called without one, which would train without the method; call "
                "optimizer.step(closure), or engine.backward(batch) and the base optimizer's step()"
            )

    def _run(self, closure: Callable[[], Any], earlier: Sequence[Tensor | None]) -> Any:
        """Run all passes of the method, which fills ``.grad``; return the loss of the first pass."""
        params, first = self.engine.params, None
        for p in params:
            p.grad = None  # the closure must zero earlier gradients, so they do not belong to this step
        for current in self.engine.passes():
            current.sparse = (
                False  # the closure's backward would fail if its loss reached none of the chosen parameters
            )
            with current, torch.enable_grad():
                marks = _marked(params, earlier) if first is None else []
                loss = closure()
                _check(loss, marks, params)
                current.adopt(loss)
            first = loss.detach() if first is None else first
        return first


def _marked(params: Sequence[Tensor], earlier: Sequence[Tensor | None]) -> list[tuple[Tensor, Tensor]]:
    """Replace earlier gradients by zeros, whose versions show later whether the closure zeroes the gradients."""
    marks = [(p, torch.zeros_like(p)) for p, g in zip(params, earlier, strict=True) if g is not None]
    for p, mark in marks:
        p.grad = mark
    return marks


def _check(loss: Any, marks: Sequence[tuple[Tensor, Tensor]], params: Sequence[Tensor]) -> None:
    if not isinstance(loss, Tensor):
        raise UsageError(f"closure must return the loss, but returned {loss!r}; end it with `return loss`")
    # Backward without zeroing writes a mark once. Zeroing in place and backward write it twice. Zeroing to None
    # replaces it.
    if marks and not any(p.grad is not mark or mark._version > 1 for p, mark in marks):
        raise UsageError(
            "closure must zero the gradients before backward, but added to earlier ones; call "
            "optimizer.zero_grad() in it, or accumulate with engine.backward(batch)"
        )
    if all(p.grad is None for p in params):
        raise UsageError("closure must call backward, but no parameter has a gradient after it; call loss.backward()")
