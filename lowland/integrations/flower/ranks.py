"""A client that computes on several ranks: rank 0 speaks to the server, the others train along."""

from __future__ import annotations

from typing import Any

import torch.distributed as dist
from flwr.app import Context, Message, RecordDict
from flwr.clientapp import ClientApp

from lowland.core.errors import LowlandError, UsageError


def leading(app: ClientApp) -> ClientApp:
    """The ``ClientApp`` of rank 0, which lets the other ranks train along; they call :func:`follow`.

    Every rank gets the same messages and keeps a state of its own. Give the engine the mesh of the ranks:
    ``Local(…, options={"mesh": mesh["probe"]})``.

    Args:
        app: The app of every rank, from :func:`~lowland.integrations.flower.client_app`.

    Raises:
        UsageError: There is no process group, or this is not rank 0.
    """
    _check_rank("leading", dist.is_initialized() and dist.get_rank() == 0, "rank 0 of a client's process group")
    led = ClientApp()

    def train(message: Message, context: Context) -> Message:
        dist.broadcast_object_list([(message, context.node_id, context.node_config, context.run_config)], src=0)
        return app(message, context)

    led.train()(train)
    led.evaluate()(app)  # one rank suffices
    return led


def follow(app: ClientApp) -> None:
    """Train along with rank 0 until it calls :func:`dismiss`; for the other ranks of a client.

    An error of lowland in a round ends the round on all ranks alike, and rank 0 tells the server.

    Args:
        app: The app of every rank.

    Raises:
        UsageError: There is no process group, or this is rank 0.
    """
    _check_rank("follow", dist.is_initialized() and dist.get_rank() > 0, "another rank than 0 of a client's group")
    state = RecordDict()
    while True:
        given: list[Any] = [None]
        dist.broadcast_object_list(given, src=0)
        if given[0] is None:
            return
        message, node, node_config, run_config = given[0]
        try:
            app(message, Context(0, node, node_config, state, run_config))
        except LowlandError:
            continue


def dismiss() -> None:
    """Let the ranks that follow this one return; for rank 0, after the last message."""
    dist.broadcast_object_list([None], src=0)


def rank() -> int:
    """This process's rank within the client; 0 if it is alone."""
    return dist.get_rank() if dist.is_available() and dist.is_initialized() else 0


def agreed(found: bool, mesh: Any) -> None:
    """Refuse a round in which some ranks of the mesh have a kept state, and others have none.

    Raises:
        UsageError: The ranks differ; raised on all.
    """
    answers: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(answers, found)
    if len(set(answers)) > 1:
        raise UsageError(
            f"all ranks of a client must have a kept state or none, but {answers} have one, as after a restart of some "
            f'ranks of {mesh}; give every rank a folder that outlives it, or begin with memory="anew"'
        )


def _check_rank(name: str, fits: bool, rule: str) -> None:
    if not fits:
        where = f"is rank {dist.get_rank()}" if dist.is_initialized() else "is in none"
        raise UsageError(
            f"{name} must be called on {rule}, but this process {where}; start the client's ranks with torchrun, call "
            "leading(app) on rank 0 and follow(app) on the others"
        )
