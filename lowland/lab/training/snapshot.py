"""The tensors of a training under the names of a checkpoint, and back to their owners.

======================================  ==================================================
name                                    tensor
======================================  ==================================================
``model/{name}``                        a parameter or buffer of the model
``optimizer/{parameter}/{key}``         an entry of the optimizer's state of a parameter
``engine/{key}/{parameter}``            a parameter's part of a vector in the method's memory
``average/{name}``                      the average of a parameter or buffer
======================================  ==================================================

Names of parameters may contain slashes. A slash in a key is written ``%2F``, so the key ends at the first slash, or
begins after the last one.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils import _pytree as pytree

from lowland.core.errors import StateError
from lowland.engine import Engine
from lowland.lab.training.average import Average
from lowland.lab.training.wrapped import plain_state

PLAIN = (int, float, bool, str, type(None))  # what ``torch.load(weights_only=True)`` reads besides tensors


class Snapshot:
    """What is saved of a model, its optimizer and its engine.

    Args:
        model: The model as this rank trains it.
        optimizer: Its optimizer.
        engine: The engine at work on both.
        average: The average of the weights, where there is one.
    """

    def __init__(self, model: nn.Module, optimizer: Optimizer, engine: Engine, average: Average | None = None) -> None:
        self._model, self._optimizer, self._engine, self._average = model, optimizer, engine, average
        self._index: dict[str, Tensor] | None = None

    def tensors(self) -> dict[str, Tensor]:
        """All tensors by name; DTensors where they are sharded."""
        found = {f"model/{name}": t for name, t in plain_state(self._model).items()}
        for name, held in self._states():
            found |= {_in_optimizer(name, k): v for k, v in held.items() if isinstance(v, Tensor)}
        for key, vector in self._vectors():
            found |= {_in_engine(key, name): t for name, t in zip(self._engine.names, vector, strict=True)}
        return found if self._average is None else found | self._average.tensors()

    def values(self) -> dict[str, dict[str, Any]]:
        """The entries of the optimizer's state that are no tensors, by parameter and key.

        Raises:
            StateError: One is made of something else than numbers and text, which could not be read back.
        """
        found = {n: {k: v for k, v in held.items() if not isinstance(v, Tensor)} for n, held in self._states()}
        for name, held in found.items():
            for key, value in held.items():
                wrong = [leaf for leaf in pytree.tree_leaves(value) if not isinstance(leaf, PLAIN)]
                if wrong:
                    raise StateError(
                        f"optimizer state {key!r} of {name} must be a tensor, or made of numbers and text, to be "
                        f"saved, but holds a {type(wrong[0]).__name__}; use another optimizer"
                    )
        return {name: held for name, held in found.items() if held}

    def like(self, name: str, size: torch.Size, dtype: torch.dtype) -> Tensor:
        """An empty tensor laid out as its owner lays it out here: on its device, and sharded where it is.

        The first call lets the optimizer make its state by a step on zero gradients, which moves the weights:
        :meth:`load` has to follow.

        Args:
            name: The saved tensor's name.
            size: Its shape, that of all shards together.
            dtype: Its dtype.

        Returns:
            A tensor of this shape and dtype. It is whole, on the CPU, where no owner has one of this name and shape.
        """
        if self._index is None:
            self._index = self._owners()
        owner = self._index.get(name)
        if owner is None or owner.shape != size:
            return torch.empty(size, dtype=dtype)
        return torch.empty_like(owner, dtype=dtype, requires_grad=False)

    @torch.no_grad()
    def load(self, tensors: Mapping[str, Tensor], values: Mapping[str, dict[str, Any]]) -> dict[str, dict[str, Tensor]]:
        """Give model and optimizer what :meth:`tensors` and :meth:`values` had.

        Args:
            tensors: By name.
            values: The optimizer's entries that are no tensors; empty in checkpoints of lowland 0.1.0.

        Returns:
            The method's vectors, by key and parameter, as ``Engine.load_state_dict`` takes them.

        Raises:
            StateError: A tensor is missing, or one of the model has another shape.
        """
        self._index = None  # with the state that the optimizer has made for it
        for name, t in plain_state(self._model).items():
            saved = _found(tensors, f"model/{name}")
            if saved.shape != t.shape:
                raise StateError(
                    f"checkpoint must hold model/{name} of shape {tuple(t.shape)}, but holds {tuple(saved.shape)}; "
                    "resume with the model it was taken from"
                )
            t.copy_(saved)
        if self._average is not None:
            self._average.load(tensors)
        params = dict(zip(self._engine.names, self._engine.params, strict=True))
        self._optimizer.state.clear()
        for name, held in values.items():
            self._optimizer.state[_known(params, name)].update(held)
        for path, t in tensors.items():
            if path.startswith("optimizer/"):
                name, _, key = path.removeprefix("optimizer/").rpartition("/")
                self._optimizer.state[_known(params, name)][_read(key)] = t
        return {
            key: {name: _found(tensors, _in_engine(key, name), f"engine/{key}/{name}") for name in params}
            for key in self._engine.vector_keys
        }

    def _states(self) -> list[tuple[str, dict[str, Any]]]:
        """The optimizer's state of every parameter."""
        state = self._optimizer.state
        return [(n, state.get(p, {})) for n, p in zip(self._engine.names, self._engine.params, strict=True)]

    def _vectors(self) -> list[tuple[str, Any]]:
        return [(key, self._engine.memory[key]) for key in sorted(self._engine.vector_keys)]

    def _owners(self) -> dict[str, Tensor]:
        """The tensor that each name stands for here; the optimizer has made its state."""
        if not any(held for _, held in self._states()):
            self._make_state()
        found = self.tensors()
        for key, vector in self._vectors():  # lowland 0.1.0 wrote slashes in keys as they are
            for name, t in zip(self._engine.names, vector, strict=True):
                found.setdefault(f"engine/{key}/{name}", t)
        return found

    def _make_state(self) -> None:
        """Let the optimizer take a step on zero gradients: only it knows which state it keeps, and where."""
        for p in self._engine.params:
            p.grad = torch.zeros_like(p)
        self._optimizer.step()
        self._optimizer.zero_grad(set_to_none=True)


def _in_optimizer(parameter: str, key: str) -> str:
    return f"optimizer/{parameter}/{_written(key)}"


def _in_engine(key: str, parameter: str) -> str:
    return f"engine/{_written(key)}/{parameter}"


def _written(key: str) -> str:
    """A key without slashes."""
    return key.replace("%", "%25").replace("/", "%2F")


def _read(key: str) -> str:
    return key.replace("%2F", "/").replace("%25", "%")


def _found(tensors: Mapping[str, Tensor], *names: str) -> Tensor:
    """The tensor of the first of these names that there is."""
    for name in names:
        if name in tensors:
            return tensors[name]
    raise StateError(
        f"checkpoint must hold {names[0]}, but does not; resume with the model and the method it was taken from"
    )


def _known(params: Mapping[str, Tensor], name: str) -> Tensor:
    if name not in params:
        raise StateError(
            f"checkpoint must hold optimizer state of trainable parameters only, but holds some of {name!r}, which is "
            "none here; resume with the model it was taken from"
        )
    return params[name]
