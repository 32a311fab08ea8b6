"""Whether a saved state fits an engine: its method, its parameters, and the ranks that it was taken on."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torch import Tensor
from torch.utils import _pytree as pytree

from lowland.core import shards
from lowland.core.errors import StateError
from lowland.core.precision import of_vectors
from lowland.engine import plans

if TYPE_CHECKING:
    from lowland.engine import Engine


def shapes(engine: Engine) -> dict[str, list[int]]:
    """The shapes of the parameters, by name."""
    return {n: list(p.shape) for n, p in zip(engine.names, engine.params, strict=True)}


def check_method(engine: Engine, state_dict: dict[str, Any]) -> None:
    """Refuse the state of another method.

    Raises:
        StateError: The state is from another method.
    """
    name = engine.method.kind
    if state_dict["method"] != name:
        raise StateError(
            f"state_dict must come from the same method, but comes from {state_dict['method']} and the engine "
            f"runs {name}; make the engine with {state_dict['method']} or start afresh"
        )


def first_memory(engine: Engine, state_dict: dict[str, Any], strict: bool) -> dict[str, Any]:
    """The initial memory for parameters that the state does not have; empty if it has all.

    Raises:
        StateError: The state has other parameters, and ``strict`` is true or parameters are missing in the engine; or
            the method keeps a value per parameter, which cannot be extended.
    """
    here, saved = shapes(engine), state_dict["parameters"]
    fits = all(here.get(n) == shape for n, shape in saved.items())
    if here != saved and (strict or not fits):
        changed = [n for n in {**saved, **here} if here.get(n) != saved.get(n)][:3]
        listed = "; ".join(
            f"{n} has shape {saved.get(n, 'none')} there and {here.get(n, 'none')} here" for n in changed
        )
        raise StateError(
            f"state_dict must come from the same model, but {listed}; load it into an engine on the model it was "
            "taken from" + (", or on one with more parameters: strict=False" if fits else "")
        )
    if here == saved:
        _check_order(engine, state_dict)
        return {}
    initial = plans.memory(engine.method.kind, engine.method.init([p.detach() for p in engine.params]), engine.params)
    each = [k for k, v in initial.items() if k not in engine.vector_keys and _per_parameter(v, len(engine.params))]
    each += [k for k in _by_position(state_dict, list(saved.values())) if k not in each]
    if each:
        raise StateError(
            f"strict=False must find memory that new parameters can join, but {engine.method.kind} keeps an entry "
            f"per parameter in {', '.join(each)}; load it into an engine on the model it is from, or start afresh"
        )
    return initial


def _per_parameter(value: Any, count: int) -> bool:
    if isinstance(value, dict):
        return any(_per_parameter(v, count) for v in value.values())
    return isinstance(value, list | tuple) and len(value) == count


def _check_order(engine: Engine, state_dict: dict[str, Any]) -> None:
    """Refuse values by position, such as a list of one number per parameter, if the parameters have another order.

    Raises:
        StateError: The state has such values, and the order of its parameters is another one.
    """
    shapes = state_dict["parameters"]
    order = list(state_dict.get("names", shapes))  # older states have no "names"
    if order == list(engine.names):
        return
    each = _by_position(state_dict, [shapes[n] for n in order])
    if each:
        place = next(i for i, (a, b) in enumerate(zip(order, engine.names, strict=True)) if a != b)
        raise StateError(
            f"state_dict must come from a model with its parameters in the same order, because {engine.method.kind} "
            f"keeps an entry per parameter in {', '.join(each)}, but number {place} is {order[place]} there and "
            f"{engine.names[place]} here; make the layers in the order in which they were made there, or start afresh"
        )


def _by_position(state_dict: dict[str, Any], shapes: list[list[int]]) -> list[str]:
    """The names of saved values and lagged values that have an entry for each parameter, which has no name."""
    values = [k for k, v in state_dict["values"].items() if _one_each(v, shapes)]
    lagged = [
        k for k, v in state_dict["lagged"].items() if isinstance(v, Tensor) and list(v.shape[:1]) == [len(shapes)]
    ]
    return values + [f"lagged values {k}" for k in lagged]


def _one_each(value: Any, shapes: list[list[int]]) -> bool:
    """Whether a saved value has an entry for each parameter: as a list, as one tensor, or inside containers."""
    if isinstance(value, Tensor):  # integers are labels of a kept batch
        return value.is_floating_point() and list(value.shape) == [len(shapes)]
    if isinstance(value, dict):
        return any(_one_each(v, shapes) for v in value.values())
    if not isinstance(value, list | tuple):
        return False
    # Names say themselves whom they belong to, and the tensors of a batch have a dimension for its examples.
    nameless = not any(isinstance(v, str) or (isinstance(v, Tensor) and v.dim()) for v in value)
    return (
        (nameless and len(value) == len(shapes))
        or _vector_of(value, shapes)
        or any(_one_each(v, shapes) for v in value)
    )


def _vector_of(value: Any, shapes: list[list[int]]) -> bool:
    """Whether a saved value that was no vector in the method's first memory has the shapes of a vector."""
    return (
        isinstance(value, list | tuple)
        and len(value) == len(shapes)
        and all(isinstance(t, Tensor) and list(t.shape) == shape for t, shape in zip(value, shapes, strict=True))
    )


def check_dtypes(engine: Engine, state_dict: dict[str, Any]) -> None:
    """Refuse floating-point tensors that belong to parameters of another dtype, such as a kept batch.

    Vectors, and the tensors of the first memory, are converted.

    Raises:
        StateError: The state has such tensors, and its parameters have another dtype.
    """
    here = {n: str(p.dtype) for n, p in zip(engine.names, engine.params, strict=True)}
    saved = dict(zip(state_dict.get("names", ()), state_dict.get("dtypes", ()), strict=True))
    if not saved:  # an older state, whose vectors show the dtypes
        here = {n: str(of_vectors(p.dtype)) for n, p in zip(engine.names, engine.params, strict=True)}
        saved = {n: str(t.dtype) for v in state_dict["vectors"].values() for n, t in v.items()}
    changed = next((n for n, dtype in saved.items() if here.get(n, dtype) != dtype), None)
    if changed is None:
        return
    for key, value in state_dict["values"].items():
        leaves = pytree.tree_leaves(value) if key not in engine.table_keys else ()
        if any(isinstance(leaf, Tensor) and leaf.is_floating_point() for leaf in leaves):
            raise StateError(
                f"state_dict must come from parameters of the same dtype, because {engine.method.kind} keeps "
                f"floating-point tensors in {key}, but {changed} was {saved[changed]} there and is {here[changed]} "
                f"here; load it into a model of the dtype it is from, or start afresh"
            )


def check_ranks(engine: Engine, state_dict: dict[str, Any]) -> None:
    """Refuse memory with tensors that belong to another rank or another number of ranks, such as a kept batch.

    Raises:
        StateError: The state has such memory.
    """
    here, saved = engine.work.replicas.ranks_and_sizes, [list(pair) for pair in state_dict.get("share") or []]
    leaves = pytree.tree_leaves(state_dict["values"])
    if here == saved or "share" not in state_dict or not any(isinstance(leaf, Tensor) for leaf in leaves):
        return

    def shown(ranks_and_sizes: list[list[int]]) -> str:
        return " and ".join(f"rank {rank} of {size}" for rank, size in ranks_and_sizes) or "one process"

    raise StateError(
        f"state_dict of {engine.method.kind} holds what belongs to a rank, and must be loaded where it was taken, on "
        f"{shown(saved)}, but this is {shown(here)}; save a file for every rank and load each rank's own, or cut the "
        "entries anew: values = method.reshard(values of all ranks, rank, ranks)"
    )


def check_shards(key: str, name: str, saved: Tensor, param: Tensor) -> None:
    """Refuse a vector that is sharded otherwise than its parameter, as after a resume on another number of ranks.

    Raises:
        StateError: The two are sharded differently.
    """
    there, here = shards.layout(saved), shards.layout(param)
    if there != here:
        raise StateError(
            f"vector {key!r} of {name} must be sharded as the parameter, which is {here}, but is {there}; resume on "
            "as many ranks, or save a sharded checkpoint, as docs/parallel.md does"
        )
