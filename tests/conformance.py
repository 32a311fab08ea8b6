"""The methods and settings that the conformance tests run, and how they make an engine."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from functools import partial
from itertools import count
from typing import Any

import pytest
import torch
from problems import EXAMPLES, Wire, adamw, batch, in_parts, loss_fn, net, parted, sgd, train

import lowland
from lowland.core.schedule import after
from lowland.core.schedule import every as every_other
from lowland.methods import METHODS, make

# Settings under which ten steps see all that a method does.
SHORT = {
    "vsam": "window=6,blocks=2,warmup=1,beta=0.5",
    "arsam": "window=6,blocks=2,warmup=1",
    "looksam": "k=3",
    "ausam": f"examples={EXAMPLES},ramp=4,warmup=1",
    "sl-sam": "s=0.4,alpha_p=0.01",
    "ae-sam": "total=6",
    "late": "start=2",
    "momentum-sam": "rho=0.1",
    "xsam": "every=3,alpha_delta=0.5",
}
EXTRA = [
    "sampa:lam=0",
    "sampa:lam=1",
    "sampa:lookahead=raw",
    "looksam:k=3,geometry=layerwise",
    "sam:geometry=adaptive",
    "sam:geometry=spectral",
    "sam:geometry=preconditioned",
    "esam:mask=element",
    "bisam:phi=log",
    "async-sam:tau=0",
    "ae-sam:total=6,lag=1",
    "xsam:k=2,alpha=0.5",
    "late:start=2,inner=sampa",
    "late:start=1,inner=stable-sam:inner=looksam:k=2",
]
# What no text can say.
SWITCHES = {
    "switch:looksam-vsam": lambda: lowland.Switch(
        when=every_other(2), inner=lowland.LookSAM(k=2), otherwise=lowland.VSAM(window=4, blocks=2)
    ),
    "switch:sam-sampa": lambda: lowland.Switch(when=after(2), inner=lowland.SAMPa(), otherwise=lowland.SAM()),
}
TEXTS = {key: f"{key}:{SHORT[key]}" if key in SHORT else key for key in METHODS}
ALL = [*TEXTS.values(), *EXTRA, *SWITCHES]

every = pytest.mark.parametrize("text", ALL)
SAMPA = [text for text in ALL if "sampa" in text]  # what goes back to a cold start
WAITING = [TEXTS["ae-sam"]]  # what reads a number of this step from the device, once a step, and waits for it
PARTIAL = ("ausam", "sl-sam", "k-sam", "esam")  # what descends on a part of the batch or of the tensors


def method_of(text: str) -> lowland.Method:
    return SWITCHES[text]() if text in SWITCHES else make(text)


def at_radius(method: lowland.Method, rho: float) -> lowland.Method:
    """The method with another radius, wherever in it the radius is."""
    inside = {f.name: getattr(method, f.name) for f in dataclasses.fields(method) if f.init}
    inner = {k: at_radius(v, rho) for k, v in inside.items() if isinstance(v, lowland.Method)}
    return dataclasses.replace(method, **(inner or {"rho": rho}))


def model_for(text: str, **kinds: Any) -> Any:
    """A network; SAM-ON's has a normalization layer to perturb."""
    return net(**({"norm": torch.nn.LayerNorm} if text.startswith("sam-on") else {}) | kinds)


def loss_for(text: str, then: Callable[[torch.Tensor], Any] | None = None) -> Any:
    """The loss function of a method, in two parts where it needs the outputs; ``then`` changes the losses."""
    if then is not None:
        return parted(text, lambda model, b: then(loss_fn(model, b)))
    return in_parts if "functional-sam" in text else loss_fn


def base_for(text: str) -> Callable[..., torch.optim.Optimizer]:
    """The base optimizer of a method: one with a second moment where it reads that."""
    # eps, because in fp16 small squares are 0, and Adam's own step would divide by 1e-8, which is 0 there, too
    return partial(adamw, eps=1e-3) if "preconditioned" in text else sgd


def engine_of(text: str, model: Any = None, *, loss: Any = None, base: Any = None, **options: Any) -> lowland.Engine:
    model = model_for(text) if model is None else model
    optimizer = (base or base_for(text))(model)
    return lowland.Engine(method_of(text), model, optimizer, loss or loss_for(text), **options)


def spoil(engine: lowland.Engine, nth: int, value: float) -> Any:
    """Multiply the losses of the n-th pass from now by ``value``; what this returns puts an end to it."""
    if not isinstance(engine.method, lowland.BiSAM | lowland.FunctionalSAM):
        lose_by(engine, Wire(nth, lambda loss: loss * value))
        return lambda: lose_by(engine, loss_fn)
    calls = count(1)  # one of its losses is not the training loss, so its logits are spoiled
    return engine.model.register_forward_hook(lambda *a: a[2] * value if next(calls) == nth else None).remove


def lose_by(engine: lowland.Engine, loss: Any) -> None:
    """Give an engine another training loss."""
    engine.loss_fn = engine.work.loss_fn = loss


def calls_of_step(text: str, step: int, dtype: torch.dtype = torch.float64) -> int:
    """How many passes a step takes; the weights depend on the precision, and some methods choose by them."""
    model, calls = model_for(text, dtype=dtype), []
    engine = engine_of(text, model)
    train(engine, step)
    with model.register_forward_hook(lambda *_: calls.append(step)):
        engine.backward(batch(step, dtype=dtype))
    return len(calls)


def vectors_of(engine: lowland.Engine) -> dict[str, list[torch.Tensor]]:
    """Copies of all vectors and tables in memory."""
    tables = {k: [v.clone()] for k, v in engine.memory.items() if isinstance(v, torch.Tensor)}
    return {k: [t.clone() for t in engine.memory[k]] for k in engine.vector_keys} | tables
