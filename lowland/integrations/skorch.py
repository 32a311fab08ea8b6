"""skorch: nets for scikit-learn that train by a method."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from lowland.core.errors import MissingExtraError, StateError, UsageError
from lowland.core.loss import Loss
from lowland.engine import Engine, lookahead
from lowland.integrations import checkpoints, refusals
from lowland.integrations.means import check_examples
from lowland.methods.base import Method

try:
    from skorch.dataset import unpack_data
except (ImportError, RuntimeError) as error:
    raise MissingExtraError("skorch", "skorch") from error


class SharpnessMixin:
    """Makes a skorch net train by a method; it is the first base class, before the net.

    ::

        class Net(SharpnessMixin, NeuralNetClassifier): ...

        net = Net(Module, sharpness=lowland.SAM(rho=0.05), max_epochs=10)
        GridSearchCV(net, {"sharpness": [lowland.Plain(), lowland.SAM(rho=0.05), lowland.SAM(rho=0.1)]})

    Callbacks such as gradient clipping, schedules, history and scoring are skorch's own. A pickled net contains the
    engine's state. ``save_params(f_engine=…)`` and ``Checkpoint(f_engine=…)`` save it beside the optimizer's state.

    Args:
        *args: As the net's.
        sharpness: The method, such as ``SAM(rho=0.05)``. Methods that choose examples by their losses are refused.
        sharpness_resume: How a method with state resumes if the optimizer is loaded without the engine: "exact" refuses
            it, "cold" starts the method anew.
        **kwargs: As the net's.

    Attributes:
        engine_: The engine, made with the optimizer.
    """

    engine_: Engine

    def __init__(self, *args: Any, sharpness: Method, sharpness_resume: str = "exact", **kwargs: Any) -> None:
        self.sharpness, self.sharpness_resume = sharpness, sharpness_resume
        super().__init__(*args, **kwargs)

    def initialize_optimizer(self, *args: Any, **kwargs: Any) -> Any:
        """Make the optimizer and the engine; the method keeps its state if method and parameters are the same.

        Raises:
            ArgumentError: ``sharpness`` is no method, or needs more than a mean loss.
            UsageError: The net has several optimizers, an optimizer that calls its closure several times, or an
                accelerator.
        """
        super().initialize_optimizer(*args, **kwargs)  # type: ignore[misc]
        self._make_engine()
        return self

    def _make_engine(self) -> None:
        refusals.check_mean(self.sharpness, "get_loss")
        checkpoints.check_resume("sharpness_resume", self.sharpness_resume)
        net: Any = self
        check_net(net)
        before = vars(self).get("engine_")
        engine = Engine(self.sharpness, modules_of(net), net.optimizer_)
        if before is not None and before.method == engine.method and same(before, engine):
            engine.load_state_dict(before.state_dict())
        self.engine_, self._looked = engine, -1

    def fit_loop(self, *args: Any, **kwargs: Any) -> Any:
        """Train by the net's method, which ``set_params(sharpness=…)`` may have changed since the last training."""
        if self.engine_.method != self.sharpness:
            self._make_engine()
        return super().fit_loop(*args, **kwargs)  # type: ignore[misc]

    def train_step_single(self, batch: Any, **fit_params: Any) -> dict[str, Any]:
        """Run the method's step on a batch.

        Returns:
            "loss", the method's loss, detached, shape ``()``, and "y_pred", the predictions of the pass that reports.
        """
        engine, predictions = self.engine_, list[Any]()
        self._set_training(True)  # type: ignore[attr-defined]
        for p in engine.passes(batch):
            wrong = self._check_once(batch, fit_params) if p.probe.cut else None
            with p:
                if wrong is not None:
                    raise wrong  # in the pass, which then reverts the step
                loss, predicted = self._loss(p.batch, fit_params)
                rows = engine.batches.size(p.batch) if p.probe.cut else 1
                p.backward(Loss(loss * rows, rows) if p.probe.cut else loss)
                if p.reports:
                    predictions.append(pytree.tree_map(torch.detach, predicted))
                del loss, predicted
        y_pred = (
            predictions[0] if len(predictions) == 1 else pytree.tree_map(lambda *each: torch.cat(each), *predictions)
        )
        return {"loss": engine.loss, "y_pred": y_pred}

    def _loss(self, batch: Any, fit_params: dict[str, Any]) -> tuple[Tensor, Any]:
        net: Any = self
        inputs, targets = unpack_data(batch)
        predicted = net.infer(inputs, **fit_params)
        return net.get_loss(predicted, targets, X=inputs, training=True), predicted

    def _check_once(self, batch: Any, fit_params: dict[str, Any]) -> Exception | None:
        """Check that a loss that is cut is a mean over examples, in steps 0, 1, 2, 4, 8, …; return the error."""
        step = self.engine_.step
        if step & (step - 1) == 0 and self._looked != step:
            self._looked = step
            try:
                check_examples(self.engine_, lambda part: self._loss(part, fit_params)[0], batch)
            except Exception as error:
                return error
        return None

    def load_params(
        self,
        f_params: Any = None,
        f_optimizer: Any = None,
        f_criterion: Any = None,
        f_history: Any = None,
        checkpoint: Any = None,
        **kwargs: Any,
    ) -> None:
        """As the net's; ``f_engine`` loads the method's state, too.

        Raises:
            StateError: The optimizer's state is loaded without the engine's, although the method has state.
        """
        net: Any = self
        if checkpoint is not None and not net.initialized_:
            net.initialize()
        loads = f_optimizer or getattr(checkpoint, "f_optimizer", None)
        if net.initialized_ and loads and not (kwargs.get("f_engine") or getattr(checkpoint, "f_engine", None)):
            self._check_resume()
        super().load_params(f_params, f_optimizer, f_criterion, f_history, checkpoint, **kwargs)  # type: ignore[misc]

    def _check_resume(self) -> None:
        if self.sharpness_resume == "cold" or not checkpoints.keeps(self.engine_, knows_progress=False):
            return
        raise StateError(
            f"the state of {self.engine_.method.kind} must be loaded with the optimizer's, because it keeps something "
            "from step to step, but f_engine is missing; save it, too, by save_params(f_engine=…) or "
            'Checkpoint(f_engine=…), or let the method start anew: sharpness_resume="cold"'
        )

    def __getstate__(self) -> dict[str, Any]:
        """The net's state with the engine's state in place of the engine, which refers to this process's tensors."""
        state: dict[str, Any] = super().__getstate__()  # type: ignore[assignment]
        engine = state.pop("engine_", None)
        if engine is None:
            return state
        # After set_params(sharpness=…) the next training begins with an engine of its own.
        return {**state, "_engine_state": engine.state_dict() if engine.method == self.sharpness else None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        trained, saved = "_engine_state" in state, state.pop("_engine_state", None)
        super().__setstate__(state)  # type: ignore[misc]
        if trained:
            net: Any = self
            self.engine_ = Engine(self.sharpness, modules_of(net), net.optimizer_)
        if saved is not None:
            self.engine_.load_state_dict(saved)


def modules_of(net: Any) -> Any:
    """The net's module, or all modules and criteria that have parameters, under their names."""
    members = {name: getattr(net, f"{name}_") for name in [*net._modules, *net._criteria]}
    trained = {name: m for name, m in members.items() if isinstance(m, nn.Module) and any(True for _ in m.parameters())}
    return next(iter(trained.values())) if len(trained) == 1 else trained


def same(before: Engine, engine: Engine) -> bool:
    """Whether two engines train identical parameters."""
    return len(before.params) == len(engine.params) and all(
        a is b for a, b in zip(before.params, engine.params, strict=True)
    )


def check_net(net: Any) -> None:
    """Refuse a net whose step is not one call of ``train_step_single`` and one of the optimizer.

    Raises:
        UsageError: The net is not supported.
    """
    if any(kind.__name__ == "AccelerateMixin" for kind in type(net).__mro__):
        raise UsageError(
            "the net must run backward by itself, but AccelerateMixin hands it to an accelerator; leave "
            "AccelerateMixin out, or train in a loop with lowland.integrations.accelerate.Sharpness"
        )
    if list(net._optimizers) != ["optimizer"]:
        raise UsageError(
            f"the net must have one optimizer, but has {', '.join(net._optimizers)}, whose steps would each run all "
            "passes; train in a loop with lowland.Engine, which takes several"
        )
    refusals.check_optimizer(net.optimizer_)
    if lookahead.needs_closure(net.optimizer_):
        raise UsageError(
            f"the optimizer must call its closure once a step, but {type(net.optimizer_).__name__} calls it as "
            "often as it likes, each time a step of the method; take another optimizer, such as SGD or AdamW"
        )
