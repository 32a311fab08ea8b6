"""The checks of a method, one function each; the message of a failed check says what is wrong."""

from __future__ import annotations

import copy
import io
from collections.abc import Callable
from dataclasses import dataclass
from itertools import count, product
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from lowland.core.errors import LowlandError, UsageError
from lowland.engine import Engine
from lowland.methods.base import Method
from lowland.testing.networks import IN_PARTS, examples, losses, network, train

STEPS = 10  # the total_steps of a training, for methods that need progress


@dataclass(frozen=True)
class Trial:
    """A method with a network and an optimizer for its checks.

    Args:
        method: The method.
        model: A function that makes the network, with equal weights at every call, from the arguments of
            :class:`Network`.
        optimizer: A function that makes the optimizer for a network.
        loss_fn: The loss function.
    """

    method: Method
    model: Callable[..., nn.Module]
    optimizer: Callable[[nn.Module], Optimizer]
    loss_fn: Any = losses

    def engine(self, model: nn.Module | None = None, **options: Any) -> Engine:
        """Make an engine with a new network; a method that needs progress gets ``total_steps``."""
        if self.method.needs_progress:
            options.setdefault("total_steps", STEPS)
        net = self.model() if model is None else model
        return Engine(self.method, net, self.optimizer(net), self.loss_fn, **options)


def trial_of(method: Method, optimizer: Callable[[nn.Module], Optimizer] | None = None) -> Trial:
    """Make a trial with the first network, optimizer and loss function that the method does not refuse.

    Raises:
        AssertionError: The method refuses all of them.
    """
    bases = [optimizer] if optimizer is not None else [_sgd, _adam]
    refusals: dict[str, None] = {}
    for model, base, loss_fn in product((network, _normalized), bases, (losses, IN_PARTS)):
        trial = Trial(method, model, base, loss_fn)
        try:
            trial.engine()
        except LowlandError as error:
            refusals[str(error)] = None
        else:
            return trial
    raise AssertionError(f"{method.kind} refuses every network and optimizer it is tried on: {'; '.join(refusals)}")


def _normalized(**kinds: Any) -> nn.Module:
    return network(**{"norm": nn.LayerNorm} | kinds)


def _sgd(model: nn.Module) -> Optimizer:
    return torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=5e-4)


def _adam(model: nn.Module) -> Optimizer:
    return torch.optim.Adam(model.parameters(), lr=0.01, amsgrad=True)


# Checks


def check_weights_are_restored(trial: Trial) -> None:
    """Weights are bit-identical before and after ``backward``, and move by the optimizer's step."""
    engine = trial.engine(model=trial.model(odd=True))
    for i in range(8):
        before = _bits(engine.model)
        engine.backward(examples(i))
        _promise(_same(_bits(engine.model), before), "backward has moved weights")
        _step(engine)
        _promise(not _same(_bits(engine.model), before), "the optimizer's step has moved nothing")


def check_exceptions_leave_no_trace(trial: Trial) -> None:
    """After an exception in any pass, weights, ``.grad``, memory, step and random numbers are as before."""
    for step in (0, 1, 3):
        for nth in count(1):
            engine = trial.engine(model=trial.model(norm=True))
            train(engine, step)
            engine.backward(examples(90))  # gradients to be kept
            again = copy.deepcopy(engine)
            again.backward(examples(91))
            if nth > again.cost.probes - engine.cost.probes:
                break
            for error in (_TripError, KeyboardInterrupt):
                _interrupted(copy.deepcopy(engine), nth, error)


def _interrupted(engine: Engine, nth: int, error: type[BaseException]) -> None:
    params, grads = [p.detach().clone() for p in engine.params], [p.grad for p in engine.params]
    memory, rng, number = dict(engine.memory), engine.rng.getstate(), engine.step
    values = [g.clone() for g in grads if g is not None]
    hook = _Trip(nth, error)
    handle = engine.model.register_forward_hook(hook)
    try:
        engine.backward(examples(91))
    except error:
        pass
    else:
        raise AssertionError(f"an exception in pass {nth} was swallowed")
    finally:
        handle.remove()
    _promise(_same([p.detach() for p in engine.params], params), f"an exception in pass {nth} has moved weights")
    _promise(all(p.grad is g for p, g in zip(engine.params, grads, strict=True)), "an exception has replaced .grad")
    _promise(_same([g for g in grads if g is not None], values), "an exception has changed .grad")
    kept = engine.memory.keys() == memory.keys() and all(engine.memory[k] is memory[k] for k in memory)
    _promise(kept, f"an exception in pass {nth} has changed memory: change it after the last probe, or by replacing")
    _promise((engine.rng.getstate(), engine.step) == (rng, number), "an exception has drawn numbers or counted a step")
    engine.backward(examples(91))  # the engine can continue


class _TripError(Exception):
    """Raised on purpose."""


class _Trip:
    def __init__(self, at: int, error: type[BaseException]) -> None:
        self.at, self.error, self.calls = at, error, 0

    def __call__(self, *_: Any) -> None:
        self.calls += 1
        if self.calls == self.at:
            raise self.error


def check_resume_is_exact(trial: Trial) -> None:
    """A run resumed in the middle equals the uninterrupted one bit for bit, with dropout and BatchNorm."""
    for at in (1, 4, 5):
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(1)
            engine = trial.engine(model=trial.model(norm=True, dropout=0.2), rng="shared", seed=3)
            train(engine, at)
            file = io.BytesIO()
            parts = {"model": engine.model.state_dict(), "optimizer": engine.optimizer.state_dict()}
            torch.save({**parts, "engine": engine.state_dict(), "random": torch.get_rng_state()}, file)
            train(engine, 9, start=at)
            file.seek(0)
            saved = torch.load(file, weights_only=True)
            resumed = trial.engine(model=trial.model(norm=True, dropout=0.2), rng="shared", seed=3)
            resumed.model.load_state_dict(saved["model"])
            resumed.optimizer.load_state_dict(saved["optimizer"])
            resumed.load_state_dict(state_dict=saved["engine"])
            torch.set_rng_state(saved["random"])
            train(resumed, 9, start=at)
        _promise(_same(_bits(resumed.model), _bits(engine.model)), f"a resume after {at} steps trains otherwise")
        _promise(resumed.step == engine.step, "a resume counts steps otherwise")
        _promise(resumed.cost.gradients == engine.cost.gradients, "a resume counts gradients otherwise")


def check_passes_equal_backward(trial: Trial) -> None:
    """``engine.passes`` computes the same as ``backward``, or is refused if a probe has its own loss."""
    one, other = (trial.engine(model=trial.model(norm=True)) for _ in range(2))
    for i in range(8):
        one.backward(examples(i))
        try:
            for p in other.passes(examples(i)):
                with p:
                    p.backward(losses(other.model, p.batch))
        except UsageError as error:
            if "asks for another loss" in str(error):
                return
            raise
        _step(one)
        _step(other)
        _promise(_same(_bits(other.model), _bits(one.model)), "passes train otherwise than backward")
    _promise(one.cost.gradients == other.cost.gradients, "passes cost otherwise than backward")


def check_accumulation_adds(trial: Trial) -> None:
    """Two calls of ``backward`` add the gradients of both calls."""
    one, other = trial.engine(), trial.engine()
    for i in range(0, 8, 2):
        parts = []
        for j in (i, i + 1):
            one.backward(examples(j))
            other.backward(examples(j))
            parts.append([p.grad for p in other.params])
            for p in other.params:
                p.grad = None
        total = [a if b is None else b if a is None else a + b for a, b in zip(*parts, strict=True)]
        for p, q, t in zip(one.params, other.params, total, strict=True):
            _promise(p.grad is t or (t is not None and torch.equal(p.grad, t)), "two calls do not add up")  # type: ignore[arg-type]
            q.grad = t
        _step(one)
        _step(other)
    _promise(_same(_bits(one.model), _bits(other.model)), "two calls do not add up")
    _promise(one.step == 8, "accumulation counts steps otherwise")


def check_unused_and_frozen_stay(trial: Trial) -> None:
    """Parameters that no pass reaches, and frozen ones, keep their weights and get no gradient."""
    model: Any = trial.model(odd=True)
    engine = trial.engine(model=model)
    kept = [t.clone() for t in (*model.unused.parameters(), *model.frozen.parameters())]
    for i in range(6):
        engine.backward(examples(i))
        rest = (*model.unused.parameters(), *model.frozen.parameters())
        _promise(all(p.grad is None for p in rest), "an unused or frozen parameter has a gradient")
        _step(engine)
    _promise(_same([*model.unused.parameters(), *model.frozen.parameters()], kept), "an unused parameter has moved")


def check_clipping_does_not_reach_memory(trial: Trial) -> None:
    """In-place changes of ``.grad`` by the caller do not change vectors in memory."""
    engine = trial.engine()
    for i in range(5):
        engine.backward(examples(i))
        before = vectors_of(engine)
        for p in engine.params:
            if p.grad is not None:
                p.grad.mul_(1e6)
        after = vectors_of(engine)
        _promise(all(_same(after[k], before[k]) for k in after), "memory shares tensors with .grad")


def check_method_is_a_value(trial: Trial) -> None:
    """A method can be compared, hashed, printed and copied, and cannot be modified."""
    method = trial.method
    _promise(method == copy.deepcopy(method), "a copy is not equal: is it a frozen dataclass?")
    _promise(hash(method) == hash(copy.deepcopy(method)), "equal methods have different hashes")
    _promise(type(method).__name__ in repr(method), "its repr does not name it")
    try:
        method.rho = 1.0  # type: ignore[misc]
    except AttributeError:
        return
    raise AssertionError("its fields can be assigned: write @dataclass(frozen=True, kw_only=True)")


def check_loaders_may_refill_buffers(trial: Trial) -> None:
    """A loader may overwrite a batch after the step: a method that keeps the batch must copy it."""
    one, other = trial.engine(), trial.engine()
    buffer = tuple(t.clone() for t in examples(0))
    for i in range(5):
        for target, source in zip(buffer, examples(i), strict=True):
            target.copy_(source)
        one.backward(examples(i))
        other.backward(buffer)
        _step(one)
        _step(other)
        _promise(_same(_bits(other.model), _bits(one.model)), "a kept batch is not copied: engine.batches.copy(batch)")


CHECKS: tuple[Callable[[Trial], None], ...] = (
    check_weights_are_restored,
    check_exceptions_leave_no_trace,
    check_resume_is_exact,
    check_passes_equal_backward,
    check_accumulation_adds,
    check_unused_and_frozen_stay,
    check_clipping_does_not_reach_memory,
    check_method_is_a_value,
    check_loaders_may_refill_buffers,
)


# Helpers


def vectors_of(engine: Engine) -> dict[str, list[Tensor]]:
    """Copies of all vectors and tables in memory."""
    tables = {k: [v.clone()] for k, v in engine.memory.items() if isinstance(v, Tensor)}
    return {k: [t.clone() for t in engine.memory[k]] for k in engine.vector_keys} | tables


def _step(engine: Engine) -> None:
    engine.optimizer.step()
    engine.optimizer.zero_grad()


def _bits(model: nn.Module) -> list[Tensor]:
    return [t.detach().clone() for t in model.state_dict().values()]


def _same(a: list[Tensor], b: list[Tensor]) -> bool:
    return len(a) == len(b) and all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


def _promise(kept: bool, message: str) -> None:
    if not kept:
        raise AssertionError(message)
