"""An engine's state as plain containers and tensors, and back."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from lowland.errors import StateError
from lowland.vec import Vec

if TYPE_CHECKING:
    from lowland.engine import Engine


def is_vec(value: Any, params: Vec) -> bool:
    """Whether a value in memory has one tensor per parameter, in their shapes."""
    return (
        isinstance(value, list)
        and len(value) == len(params)
        and all(isinstance(t, Tensor) and t.shape == p.shape for t, p in zip(value, params, strict=True))
    )


def save(engine: Engine) -> dict[str, Any]:
    """Vectors by parameter name, all other memory as it is."""
    vectors = {k: v for k, v in engine.memory.items() if is_vec(v, engine.params)}
    return {
        "method": type(engine.method).__name__,
        "step": engine.step,
        "vectors": {k: dict(zip(engine.names, v, strict=True)) for k, v in vectors.items()},
        "values": {k: v for k, v in engine.memory.items() if k not in vectors},
        "rng": engine.rng.getstate(),
        "lagged": engine.lagged.state_dict(),
        "cost": dataclasses.asdict(engine.cost),
    }


def load(engine: Engine, state_dict: dict[str, Any]) -> None:
    """Check everything, then change the engine."""
    keys = ("method", "step", "vectors", "values", "rng", "lagged", "cost")
    missing = [k for k in keys if k not in state_dict]
    if missing:
        raise StateError(
            f"state_dict must be what Engine.state_dict() gave, but lacks {', '.join(missing)}; "
            "load the engine's state, not the model's or the optimizer's"
        )
    name = type(engine.method).__name__
    if state_dict["method"] != name:
        raise StateError(
            f"state_dict must come from the same method, but comes from {state_dict['method']} and the engine "
            f"runs {name}; make the engine with {state_dict['method']} or start afresh"
        )
    vectors = {k: _vector(engine, k, v) for k, v in state_dict["vectors"].items()}
    values = {k: _to(engine, v) for k, v in state_dict["values"].items()}
    if set(vectors) | set(values) != set(engine.memory):
        raise StateError(
            f"state_dict must hold the memory {sorted(engine.memory)}, but holds "
            f"{sorted({*vectors, *values})}; it was taken with another version of {name}"
        )
    engine.rng.setstate(_tuples(state_dict["rng"]))
    engine.memory = {k: (vectors | values)[k] for k in engine.memory}
    engine.lagged.load_state_dict(state_dict["lagged"])
    engine.step = state_dict["step"]
    for key, value in state_dict["cost"].items():
        setattr(engine.cost, key, value)


def _vector(engine: Engine, key: str, saved: dict[str, Tensor]) -> Vec:
    lost = [n for n in engine.names if n not in saved]
    extra = [n for n in saved if n not in set(engine.names)]
    if lost or extra:
        raise StateError(
            f"state_dict must come from the same model, but {key!r} lacks {lost[:3]} and has unknown {extra[:3]}; "
            "load it into an engine on the model it was taken from"
        )
    for n, p in zip(engine.names, engine.params, strict=True):
        if saved[n].shape != p.shape:
            raise StateError(
                f"state_dict must come from the same model, but {key!r} has shape {tuple(saved[n].shape)} for {n}, "
                f"which has {tuple(p.shape)}; load it into an engine on the model it was taken from"
            )
    # Clones: what the caller loaded stays the caller's.
    return [saved[n].detach().to(p, copy=True) for n, p in zip(engine.names, engine.params, strict=True)]


def _to(engine: Engine, value: Any) -> Any:
    device = engine.params[0].device
    return torch.utils._pytree.tree_map(lambda t: t.to(device) if isinstance(t, Tensor) else t, value)


def _tuples(value: Any) -> Any:
    return tuple(_tuples(v) for v in value) if isinstance(value, list | tuple) else value
