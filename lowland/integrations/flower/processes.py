"""Flower's Grid with a process of this machine for every client: for tests, examples and small studies."""

from __future__ import annotations

import multiprocessing
import time
from collections.abc import Callable, Iterable, Mapping
from multiprocessing.connection import wait
from typing import Any

from flwr.app import Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid
from flwr.supercore.task_identity import TaskIdentity

from lowland.core import checks
from lowland.core.errors import ArgumentError, UsageError
from lowland.integrations.flower.worker import CRASHED, Worker, error_reply, numbered

PRELOADED = ["torch._dynamo"]  # which an optimizer imports in its first step, for seconds in every process


class Processes(Grid):  # type: ignore[misc]
    """Clients as processes of this machine, which a server reaches as Flower's clients: no network, no ray.

    ::

        if __name__ == "__main__":  # because the processes import the script, too
            with Processes(make_app, 10) as grid:
                result = FedAvg(fraction_evaluate=0.0).start(grid, arrays_of(Net()), num_rounds=20)

    A client that dies in the middle of a message answers with an error, and so it does from then on. Its context, with
    what it kept, is that after its last reply. An exception of a client is an error, too, but the client lives.

    Args:
        app: A function without arguments that makes the ``ClientApp``, importable from a module, because every process
            calls it: a function of a module, or a ``functools.partial`` of one.
        count: The number of clients, >= 1. Their node ids are 1, 2, …, their partition ids 0, 1, ….
        at_once: The most clients that work at the same time, >= 1; None is all.
        restart: Start a dead client again when the next message for it comes.
        threads: The number of torch's threads in every process, >= 1.
        preload: Modules that are imported once for all processes, where the system can fork.
        run_config: The run's settings, which clients find in ``context.run_config``.

    Raises:
        ArgumentError: An argument breaks its rule.
    """

    def __init__(
        self,
        app: Callable[[], ClientApp],
        count: int,
        *,
        at_once: int | None = None,
        restart: bool = False,
        threads: int = 1,
        preload: Iterable[str] = (),
        run_config: Mapping[str, Any] | None = None,
    ) -> None:
        checks.integer("count", count, 1, "give the number of clients")
        checks.integer("threads", threads, 1, "1 computes in one thread")
        if at_once is not None:
            checks.integer("at_once", at_once, 1, "None lets all clients work at the same time")
        if not callable(app) or isinstance(app, ClientApp):
            raise ArgumentError(
                f"app must be a function that makes a ClientApp, but is a {type(app).__name__}; every process calls it"
            )
        forks = "forkserver" in multiprocessing.get_all_start_methods()
        system: Any = multiprocessing.get_context("forkserver" if forks else "spawn")
        if forks:
            system.set_forkserver_preload([__name__, *PRELOADED, *preload])
        self._restart, self._at_once = restart, at_once or count
        self._run: Any = None
        self._identity = _identified()
        self._queue: list[Message] = []
        self._replies: dict[str, Message] = {}
        self._clients: dict[int, Worker] = {}
        for number in range(count):
            made = {"app": app, "system": system, "threads": threads, "run_config": dict(run_config or {})}
            config = {"partition-id": number, "num-partitions": count}
            self._clients[number + 1] = Worker(number + 1, config, **made)
        self.reset()

    def __enter__(self) -> Processes:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def reset(self) -> None:
        """Begin anew: every client lives and has an empty context, and no message is under way."""
        self._queue.clear()
        self._replies.clear()
        for client in self._clients.values():
            if client.message is not None:
                client.kill()
            client.forget()
            if not client.alive:
                client.start()

    def close(self) -> None:
        """End all processes."""
        for client in self._clients.values():
            client.end()
        for name in self._identity:
            setattr(TaskIdentity, name, None)
        self._identity = []

    def pid(self, node: int) -> int | None:
        """The process of a client; None if it is dead."""
        client = self._clients[node]
        return client.process.pid if client.alive else None

    # Flower's Grid

    def set_run(self, run: Any) -> None:
        """See ``flwr.serverapp.Grid``."""
        self._run = run

    @property
    def run(self) -> Any:
        """See ``flwr.serverapp.Grid``."""
        if self._run is None:
            raise UsageError("grid.run must be set before it is read, but is not; call grid.set_run(run)")
        return self._run

    def create_message(
        self, content: RecordDict, message_type: str, dst_node_id: int, group_id: str, ttl: float | None = None
    ) -> Message:
        """See ``flwr.serverapp.Grid``."""
        return Message(content, dst_node_id, message_type, ttl=ttl, group_id=group_id)

    def get_node_ids(self) -> list[int]:
        """The node ids of all clients, also of dead ones, so that no strategy waits for them."""
        return list(self._clients)

    def push_messages(self, messages: Iterable[Message]) -> list[str]:
        """Queue messages, and hand out what can be; see ``flwr.serverapp.Grid``."""
        pushed = [numbered(message) for message in messages]
        unknown = [m.metadata.dst_node_id for m in pushed if m.metadata.dst_node_id not in self._clients]
        if unknown:
            raise ArgumentError(
                f"messages must go to clients 1 to {len(self._clients)}, but one goes to {unknown[0]}; take node ids "
                "from grid.get_node_ids()"
            )
        self._queue += pushed
        self._hand_out()
        return [m.metadata.message_id for m in pushed]

    def pull_messages(self, message_ids: Iterable[str]) -> list[Message]:
        """The replies to these messages that are there; see ``flwr.serverapp.Grid``."""
        self._collect(0)
        return [self._replies.pop(name) for name in message_ids if name in self._replies]

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> list[Message]:
        """Send messages and wait for the replies; a client without a reply in time is killed.

        Args:
            messages: The messages.
            timeout: The most seconds; None waits for all replies.

        Returns:
            A reply to each message, some of which may be errors.
        """
        names = self.push_messages(messages)
        end = None if timeout is None else time.monotonic() + timeout
        while missing := [name for name in names if name not in self._replies]:
            left = None if end is None else max(0.0, end - time.monotonic())
            self._collect(left)
            if left == 0.0:
                self._give_up(set(missing), timeout)
        return self.pull_messages(names)

    # The processes

    def _hand_out(self) -> None:
        """Hand queued messages to idle clients, as many as may work at once."""
        waiting = []
        for message in self._queue:
            client = self._clients[message.metadata.dst_node_id]
            if (
                client.message is not None
                or sum(c.message is not None for c in self._clients.values()) >= self._at_once
            ):
                waiting.append(message)
                continue
            if not client.alive and self._restart:
                client.start()
            reason = client.send(message)
            if reason is not None:
                self._reply(error_reply(message, CRASHED, reason))
        self._queue = waiting

    def _collect(self, timeout: float | None) -> None:
        """Wait until a working client replies or dies, take all replies, and hand out more messages."""
        working = [c for c in self._clients.values() if c.message is not None]
        signs = {sign: c for c in working for sign in (c.connection, c.process.sentinel)}
        ready = wait(list(signs), timeout) if signs else []
        for client in dict.fromkeys(signs[sign] for sign in ready):
            self._reply(client.receive())
        self._hand_out()

    def _reply(self, reply: Message) -> None:
        self._replies[reply.metadata.reply_to_message_id] = reply

    def _give_up(self, names: set[str], timeout: float | None) -> None:
        reason = f"no reply in {timeout:g} s"
        for message in [m for m in self._queue if m.metadata.message_id in names]:
            self._queue.remove(message)
            self._reply(error_reply(message, CRASHED, reason))
        for client in self._clients.values():
            if client.message is not None and client.message.metadata.message_id in names:
                self._reply(error_reply(client.message, CRASHED, f"{reason}, and was killed"))
                client.kill()


def _identified() -> list[str]:
    """Make this process the server of run 0, without which Flower makes no messages; the names of what was set."""
    names = []
    for name in ("task_id", "run_id", "node_id"):
        try:
            getattr(TaskIdentity, name)
        except RuntimeError:
            setattr(TaskIdentity, name, 0)
            names.append(name)
    return names
