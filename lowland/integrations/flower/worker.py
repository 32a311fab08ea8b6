"""A client of the Grid of processes: its process, its context, and the message that it works on."""

from __future__ import annotations

import signal
import uuid
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any

import torch
from flwr.app import Context, Error, Message, Metadata, RecordDict
from flwr.clientapp import ClientApp

RAISED, CRASHED = 2, 8  # Flower's codes for a ClientApp that raised, and for one that crashed
PATIENCE = 5.0  # seconds until a process that should end is killed


class Worker:
    """One client of :class:`~lowland.integrations.flower.Processes`.

    Args:
        node: Its node id.
        config: Its node's settings.
        app: The function that makes the ``ClientApp`` in the process.
        system: The context of multiprocessing.
        threads: The number of torch's threads in the process.
        run_config: The run's settings.

    Attributes:
        message: The message that the client works on; None if it is idle.
        context: Flower's context, as it was after the last reply.
        connection: The connection to the process.
        process: The process; None before the first start.
    """

    def __init__(
        self,
        node: int,
        config: dict[str, int],
        *,
        app: Callable[[], ClientApp],
        system: Any,
        threads: int,
        run_config: dict[str, Any],
    ) -> None:
        self._node, self._config, self._run_config = node, config, run_config
        self._app, self._system, self._threads = app, system, threads
        self.context: Any = None
        self.message: Message | None = None
        self.process: Any = None
        self.connection: Any = None

    def forget(self) -> None:
        """Begin with a context without state."""
        self.context = Context(0, self._node, {**self._config}, RecordDict(), {**self._run_config})

    @property
    def alive(self) -> bool:
        """Whether the process lives."""
        return self.process is not None and self.process.is_alive()

    def start(self) -> None:
        """Start the process."""
        self.connection, other = self._system.Pipe()
        self.process = self._system.Process(target=serve, args=(self._app, other, self._threads), daemon=True)
        self.process.start()
        other.close()  # so that the death of the process ends the connection

    def send(self, message: Message) -> str | None:
        """Hand over a message; return why this is impossible, or None."""
        try:
            if not self.alive:
                raise BrokenPipeError
            self.connection.send((message, self.context))
        except OSError:
            return f"its process is dead ({self._death()})"
        self.message = message
        return None

    def receive(self) -> Message:
        """The reply to the message, or an error if the process died."""
        message, self.message = self.message, None
        assert message is not None
        try:
            if not self.connection.poll():  # a process of its own may hold the connection of a dead client open
                raise EOFError
            reply, context = self.connection.recv()
        except (EOFError, OSError):
            self.process.join(PATIENCE)
            return error_reply(message, CRASHED, f"its process died in the middle of the round ({self._death()})")
        self.context = self.context if context is None else context
        return numbered(reply)

    def kill(self) -> None:
        """Kill the process, if it lives."""
        self.message = None
        if self.process is not None:
            self.process.kill()
            self.process.join()

    def end(self) -> None:
        """Let the process end, or kill it."""
        if self.alive and self.message is None:
            self.connection.close()
            self.process.join(PATIENCE)
        self.kill()

    def _death(self) -> str:
        code = None if self.process is None else self.process.exitcode
        return signal.Signals(-code).name if code is not None and code < 0 else f"exit code {code}"


def serve(make: Callable[[], ClientApp], connection: Connection, threads: int) -> None:
    """Answer messages until the connection ends: the work of a client's process."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the server's process ends this one
    torch.set_num_threads(threads)
    app = make()
    while True:
        try:
            message, context = connection.recv()
        except EOFError:
            return
        try:
            answer = app(message, context), context
        except Exception as error:
            answer = error_reply(message, RAISED, f"{type(error).__name__}: {error}"), None
        connection.send(answer)


def error_reply(message: Message, code: int, reason: str) -> Message:
    """A reply that says why there is no result."""
    return numbered(Message(Error(code, reason), reply_to=message))


def numbered(message: Message) -> Message:
    """The message with a new id, which Flower leaves to the Grid."""
    old = message.metadata
    names = ("run_id", "src_node_id", "dst_node_id", "reply_to_message_id", "group_id", "created_at", "ttl")
    metadata = Metadata(
        message_id=str(uuid.uuid4()), message_type=old.message_type, **{name: getattr(old, name) for name in names}
    )
    if message.has_error():
        return Message(error=message.error, metadata=metadata)
    return Message(content=message.content, metadata=metadata)
