"""The state of an engine: saved and loaded as plain containers, and restored after a step that does not count."""

from __future__ import annotations

import dataclasses
import operator
import random
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from lowland.core import shards, vec
from lowland.core.batch import Parts
from lowland.core.errors import StateError
from lowland.core.precision import of_vectors
from lowland.core.vec import Vec
from lowland.engine import origin
from lowland.executors.counted import Cost

PARTS = "lowland.Parts"  # the key under which Parts are saved
OPTIONAL = ("share", "executor", "names", "dtypes")  # older states have none; most executors keep nothing

if TYPE_CHECKING:
    from lowland.engine import Engine


def keep_where_finite(engine: Engine, finite: Tensor, before: dict[str, Any]) -> None:
    """Replace changed vectors and tables of memory by the method's fallback, on the device, if the step is not finite.

    Args:
        engine: The engine with the memory.
        finite: Whether the step is finite, a boolean tensor of shape ``()``.
        before: The memory before the step.
    """
    safe = engine.method.fallback(before)
    for key in engine.table_keys:
        engine.memory[key] = torch.where(finite, engine.memory[key], safe[key])
    for key in engine.vector_keys:
        if engine.memory[key] is not before[key]:
            engine.memory[key] = vec.where(finite, engine.memory[key], safe[key])


def restorer(engine: Engine) -> Callable[[], None]:
    """Save the state of an engine, and return a function that restores it."""
    memory, waiting, rng = dict(engine.memory), dict(engine.lagged.waiting), engine.rng.getstate()
    step, loss, aux, first = engine.step, engine.loss, engine.aux, engine.work.first
    cost = vars(engine.cost).copy()

    def restore() -> None:
        engine.memory, engine.lagged.waiting, engine.step = memory, waiting, step
        engine.loss, engine.aux, engine.work.first = loss, aux, first
        vars(engine.cost).update(cost)  # in place, because other objects refer to the cost
        engine.rng.setstate(rng)

    return restore


def save(engine: Engine) -> dict[str, Any]:
    """The state of an engine; vectors of memory by parameter name, all other memory unchanged.

    Raises:
        StateError: Memory has a value that ``torch.load(weights_only=True)`` cannot read.
    """
    vectors = {k: engine.memory[k] for k in engine.vector_keys}
    executor = engine.executor.state_dict()
    return {
        "method": engine.method.kind,
        "parameters": origin.shapes(engine),
        "names": list(engine.names),
        "dtypes": [str(p.dtype) for p in engine.params],
        "step": engine.step,
        "share": engine.work.replicas.ranks_and_sizes,
        "vectors": {k: dict(zip(engine.names, map(_savable, v), strict=True)) for k, v in vectors.items()},
        "values": {k: _loadable(k, _plain(v)) for k, v in engine.memory.items() if k not in vectors},
        "rng": engine.rng.getstate(),
        "lagged": engine.lagged.state_dict(),
        "cost": dataclasses.asdict(engine.cost),
        **({"executor": executor} if executor else {}),
    }


def load(engine: Engine, state_dict: dict[str, Any], strict: bool = True) -> None:
    """Load a state; the engine changes only after all checks. See :meth:`Engine.load_state_dict`."""
    if not isinstance(state_dict, Mapping):
        raise StateError(
            f"state_dict must be what Engine.state_dict() gave, but is a {type(state_dict).__name__}; load the "
            "checkpoint with torch.load first"
        )
    missing = [k for k in save(engine) if k not in state_dict and k not in OPTIONAL]
    if missing:
        raise StateError(
            f"state_dict must be what Engine.state_dict() gave, but lacks {', '.join(missing)}; "
            "load the engine's state, not the model's or the optimizer's"
        )
    origin.check_method(engine, state_dict)
    origin.check_ranks(engine, state_dict)
    try:
        initial = origin.first_memory(engine, state_dict, strict)
        origin.check_dtypes(engine, state_dict)
        vectors = {k: _vector(engine, k, v, initial.get(k)) for k, v in state_dict["vectors"].items()}
        memory = vectors | {k: _copied(engine, v) for k, v in state_dict["values"].items()}
        rng = random.Random()
        rng.setstate(_tuples(state_dict["rng"]))
        lagged = {str(k): v.clone() for k, v in state_dict["lagged"].items()}
        cost = Cost(**state_dict["cost"])
        step = operator.index(state_dict["step"])
        executor = dict(state_dict.get("executor") or {})
    except StateError:
        raise
    except (TypeError, AttributeError, ValueError, KeyError, RuntimeError) as error:
        raise StateError(
            f"state_dict must be what Engine.state_dict() gave, but is damaged ({error!r}); load an earlier checkpoint"
        ) from error
    memory |= {k: _table(k, memory.get(k), engine.memory[k]) for k in engine.table_keys}
    if set(vectors) != engine.vector_keys or set(memory) != set(engine.memory):
        raise StateError(
            f"state_dict must hold the memory {sorted(engine.memory)}, but holds {sorted(memory)}; "
            f"it was taken with another version of {state_dict['method']}"
        )
    engine.executor.load_state_dict(executor)  # refuses a damaged state
    engine.memory = {k: memory[k] for k in engine.memory}
    engine.rng.setstate(rng.getstate())
    engine.lagged.load_state_dict(lagged)
    engine.executor.cost = cost
    engine.step = step


def _savable(t: Tensor) -> Tensor:
    """Copy a shard that begins inside a larger storage, as gradients of ``fully_shard`` do: torch.save refuses it."""
    return t.clone() if shards.is_sharded(t) and t.storage_offset() else t


def _plain(value: Any) -> Any:
    """Convert Parts to a dict of one entry, which every version of torch reads with ``weights_only=True``."""
    return {PARTS: list(value)} if isinstance(value, Parts) else value


def _loadable(key: str, value: Any) -> Any:
    """Return the value, or refuse it if ``torch.load(weights_only=True)`` cannot read it.

    Raises:
        StateError: The value is not made of tensors, numbers, text, tuples, lists and dicts.
    """
    parts = value.values() if type(value) is dict else value if type(value) in (list, tuple) else ()
    for part in parts:
        _loadable(key, part)
    if type(value) not in (dict, list, tuple, int, float, str, bool, type(None)) and not isinstance(value, Tensor):
        raise StateError(
            f"memory {key!r} must be made of tensors, numbers, tuples, lists and dicts to be saved, but holds a "
            f"{type(value).__name__}; let the loader give plain tuples or dicts, and a plan keep such values"
        )
    return value


def _table(key: str, saved: Any, here: Tensor) -> Tensor:
    """A saved tensor of the method's first memory, in the dtype that it has here.

    Raises:
        StateError: It has another shape, or is no tensor.
    """
    shape, saved_shape = tuple(here.shape), tuple(getattr(saved, "shape", ()))
    if saved_shape != shape or not isinstance(saved, Tensor):
        raise StateError(
            f"memory {key!r} must have shape {shape}, but has {saved_shape}; it was taken with other examples: "
            "make the method as it was made there"
        )
    return saved.to(here.dtype) if saved.is_floating_point() and here.is_floating_point() else saved


def _vector(engine: Engine, key: str, saved: dict[str, Tensor], initial: Vec | None) -> Vec:
    for name, param in zip(engine.names, engine.params, strict=True):
        if name in saved:
            origin.check_shards(key, name, saved[name], param)
    # Copies, because the caller may change the loaded tensors.
    return [
        saved[n].detach().to(p.device, of_vectors(p.dtype), copy=True).view_as(p)
        if initial is None or n in saved
        else initial[i]
        for i, (n, p) in enumerate(zip(engine.names, engine.params, strict=True))
    ]


def _copied(engine: Engine, value: Any) -> Any:
    device = engine.params[0].device
    if type(value) is dict and list(value) == [PARTS]:
        value = Parts(value[PARTS])
    return pytree.tree_map(lambda t: t.to(device, copy=True) if isinstance(t, Tensor) else t, value)


def _tuples(value: Any) -> Any:
    return tuple(_tuples(v) for v in value) if isinstance(value, list | tuple) else value
