"""What a client keeps from round to round: the state of the method and of the base optimizer."""

from __future__ import annotations

import io
import os
from pathlib import Path
from typing import Any

import torch
from flwr.app import ConfigRecord, Context
from torch.optim import Optimizer

from lowland.core.errors import StateError
from lowland.engine import Engine
from lowland.integrations import checkpoints
from lowland.integrations.flower.ranks import rank

RECORD = "lowland"  # the record of context.state


def save(engine: Engine, optimizer: Optimizer, context: Context, folder: str | os.PathLike[str] | None) -> None:
    """Keep the state of engine and optimizer in the client's context, or in a file of the client's folder.

    Args:
        engine: The engine after the round.
        optimizer: The base optimizer.
        context: The client's context.
        folder: The folder; None keeps the state in ``context.state``.
    """
    buffer, state = io.BytesIO(), optimizer.state_dict()
    groups = [len(group["params"]) for group in state["param_groups"]]
    torch.save({"engine": engine.state_dict(), "optimizer": state["state"], "groups": groups}, buffer)
    if folder is None:
        context.state[RECORD] = ConfigRecord({"state": buffer.getvalue()})
        return
    path = path_of(folder)
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_suffix(".tmp")
    unfinished.write_bytes(buffer.getvalue())
    os.replace(unfinished, path)  # whoever is killed in between leaves the state of the round before


def load(engine: Engine, optimizer: Optimizer, context: Context, folder: str | os.PathLike[str] | None) -> bool:
    """Load what :func:`save` kept; return whether there was anything.

    The settings of the optimizer, such as the learning rate, stay as they are; only its buffers are loaded.

    Raises:
        StateError: The state is damaged, or is from another method, model or optimizer.
    """
    kept = _kept(context, folder)
    if kept is None:
        return False
    try:
        saved: dict[str, Any] = torch.load(io.BytesIO(kept), weights_only=True, map_location="cpu")
        state, groups, buffers = saved["engine"], saved["groups"], saved["optimizer"]
    except Exception as error:
        raise StateError(
            f"the kept state of the client must be what an earlier round kept, but is damaged ({error!r}); remove it"
        ) from error
    own = optimizer.state_dict()["param_groups"]
    if groups != [len(group["params"]) for group in own]:
        raise StateError(
            f"the kept state of the client must be from an optimizer with groups of {[len(g['params']) for g in own]} "
            f"parameters, but has {groups}; make the same optimizer in every round, or keep the state elsewhere"
        )
    engine.load_state_dict(state)
    optimizer.load_state_dict({"state": buffers, "param_groups": own})
    return True


def path_of(folder: str | os.PathLike[str]) -> Path:
    """The file of this rank in a client's folder."""
    return checkpoints.path_of(folder, rank())


def _kept(context: Context, folder: str | os.PathLike[str] | None) -> bytes | None:
    if folder is not None:
        path = path_of(folder)
        return path.read_bytes() if path.exists() else None
    record = context.state.get(RECORD)
    return None if record is None else bytes(record["state"])
