"""The state of a training as named tensors: collected for a checkpoint, and loaded from one.

======================================  ==================================================
name                                    tensor
======================================  ==================================================
``model/{name}``                        a parameter or buffer of the model
``optimizer/{parameter}/{key}``         an entry of a parameter's optimizer state
``engine/{key}/{parameter}``            a parameter's part of a vector in the method's memory
``average/{name}``                      the average of a parameter or buffer
======================================  ==================================================

Names of parameters may contain slashes. A slash in a key is written ``%2F``, so the key ends at the first slash, or
begins after the last slash.
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
    """The state of a model, its optimizer and its engine that a checkpoint saves.

    Args:
        model: The model, wrapped as this rank trains it.
        optimizer: The optimizer of the model.
        engine: The engine that trains the model.
        average: The average of the weights; None without averaging.
    """

    def __init__(self, model: nn.Module, optimizer: Optimizer, engine: Engine, average: Average | None = None) -> None:
        self._model, self._optimizer, self._engine, self._average = model, optimizer, engine, average
        self._index: dict[str, Tensor] | None = None

    def tensors(self) -> dict[str, Tensor]:
        """All tensors by name; sharded tensors are DTensors."""
        named = {f"model/{name}": t for name, t in plain_state(self._model).items()}
        for name, entries in self._states():
            named |= {_in_optimizer(name, k): v for k, v in entries.items() if isinstance(v, Tensor)}
        for key, vector in self._vectors():
            named |= {_in_engine(key, name): t for name, t in zip(self._engine.names, vector, strict=True)}
        return named if self._average is None else named | self._average.tensors()

    def values(self) -> dict[str, dict[str, Any]]:
        """The entries of the optimizer's state that are not tensors, by parameter and key.

        Raises:
            StateError: An entry holds something other than numbers and text, which a checkpoint cannot restore.
        """
        plain = {n: {k: v for k, v in entries.items() if not isinstance(v, Tensor)} for n, entries in self._states()}
        for name, entries in plain.items():
            for key, value in entries.items():
                wrong = [leaf for leaf in pytree.tree_leaves(value) if not isinstance(leaf, PLAIN)]
                if wrong:
                    raise StateError(
                        f"optimizer state {key!r} of {name} must be a tensor, or made of numbers and text, to be "
                        f"saved, but holds a {type(wrong[0]).__name__}; use another optimizer"
                    )
        return {name: entries for name, entries in plain.items() if entries}

    def like(self, name: str, size: torch.Size, dtype: torch.dtype) -> Tensor:
        """An empty tensor with the device and the sharding that this training uses for the named tensor.

        The first call creates the optimizer's state by a step on zero gradients. This step moves the weights, so the
        caller must call :meth:`load` afterwards.

        Args:
            name: The saved tensor's name.
            size: The shape of the unsharded tensor.
            dtype: The dtype of the tensor.

        Returns:
            A tensor of this shape and dtype; unsharded and on the CPU if this training has no tensor of this name and
            shape.
        """
        if self._index is None:
            self._index = self._owners()
        owner = self._index.get(name)
        if owner is None or owner.shape != size:
            return torch.empty(size, dtype=dtype)
        return torch.empty_like(owner, dtype=dtype, requires_grad=False)

    @torch.no_grad()
    def load(self, tensors: Mapping[str, Tensor], values: Mapping[str, dict[str, Any]]) -> dict[str, dict[str, Tensor]]:
        """Load the state of model, optimizer and average.

        Args:
            tensors: The tensors by name, as :meth:`tensors` gives them.
            values: The optimizer's entries that are not tensors, as :meth:`values` gives them;
                empty in checkpoints of lowland 0.1.0.

        Returns:
            The method's vectors, by key and parameter, as ``Engine.load_state_dict`` takes them.

        Raises:
            StateError: A tensor is missing, or one of the model has another shape.
        """
        self._index = None  # drops the optimizer state that the index refers to
        for name, t in plain_state(self._model).items():
            saved = _first_present(tensors, f"model/{name}")
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
        for name, entries in values.items():
            self._optimizer.state[_trainable(params, name)].update(entries)
        for path, t in tensors.items():
            if path.startswith("optimizer/"):
                name, _, key = path.removeprefix("optimizer/").rpartition("/")
                self._optimizer.state[_trainable(params, name)][_unescape(key)] = t
        return {
            key: {name: _first_present(tensors, _in_engine(key, name), f"engine/{key}/{name}") for name in params}
            for key in self._engine.vector_keys
        }

    def _states(self) -> list[tuple[str, dict[str, Any]]]:
        """The optimizer's state of each parameter, by the parameter's name."""
        state = self._optimizer.state
        return [(n, state.get(p, {})) for n, p in zip(self._engine.names, self._engine.params, strict=True)]

    def _vectors(self) -> list[tuple[str, Any]]:
        return [(key, self._engine.memory[key]) for key in sorted(self._engine.vector_keys)]

    def _owners(self) -> dict[str, Tensor]:
        """This training's tensors by name; creates the optimizer's state first if there is none."""
        if not any(entries for _, entries in self._states()):
            self._make_state()
        owners = self.tensors()
        for key, vector in self._vectors():  # lowland 0.1.0 wrote slashes in keys as they are
            for name, t in zip(self._engine.names, vector, strict=True):
                owners.setdefault(f"engine/{key}/{name}", t)
        return owners

    def _make_state(self) -> None:
        """Create the optimizer's state by a step on zero gradients; only the optimizer knows its entries."""
        for p in self._engine.params:
            p.grad = torch.zeros_like(p)
        self._optimizer.step()
        self._optimizer.zero_grad(set_to_none=True)


def _in_optimizer(parameter: str, key: str) -> str:
    return f"optimizer/{parameter}/{_escape(key)}"


def _in_engine(key: str, parameter: str) -> str:
    return f"engine/{_escape(key)}/{parameter}"


def _escape(key: str) -> str:
    """Escape the slashes in a key."""
    return key.replace("%", "%25").replace("/", "%2F")


def _unescape(key: str) -> str:
    return key.replace("%2F", "/").replace("%25", "%")


def _first_present(tensors: Mapping[str, Tensor], *names: str) -> Tensor:
    """The tensor of the first of these names that the checkpoint holds."""
    for name in names:
        if name in tensors:
            return tensors[name]
    raise StateError(
        f"checkpoint must hold {names[0]}, but does not; resume with the model and the method it was taken from"
    )


def _trainable(params: Mapping[str, Tensor], name: str) -> Tensor:
    """The trainable parameter of this name."""
    if name not in params:
        raise StateError(
            f"checkpoint must hold optimizer state of trainable parameters only, but holds some of {name!r}, which is "
            "none here; resume with the model it was taken from"
        )
    return params[name]
