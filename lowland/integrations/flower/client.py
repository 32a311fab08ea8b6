"""A Flower client whose local training is an engine."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sized
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from flwr.app import Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from torch import Tensor, nn
from torch.optim import Optimizer

from lowland.core import checks
from lowland.core.errors import ArgumentError, UsageError
from lowland.core.loss import LossFn
from lowland.engine import Engine
from lowland.integrations import refusals
from lowland.integrations.flower import kept
from lowland.integrations.flower.arrays import arrays_of, load_arrays, not_finite
from lowland.integrations.flower.ranks import agreed
from lowland.methods.base import Method

OPTIONS = ("mesh", "executor", "micro_batch", "cut", "rng", "seed")
WEIGHT = "num-examples"  # the metric by which Flower's strategies weigh a client
Make = Callable[[Context, Mapping[str, Any]], "Local"]


@dataclass(kw_only=True)
class Local:
    """The local training of one client in one round.

    Args:
        method: The method, such as ``SAMPa()``; another one in every client or round if you like.
        model: The model. The server's arrays are copied into it.
        optimizer: A new base optimizer of the model.
        loss_fn: The loss function, as :class:`lowland.Engine` takes it.
        batches: All batches of the round, in order, on the model's device: those of several epochs for several epochs.
        examples: The number of the client's examples, >= 1, which weighs its result in the average.
        memory: "anew" begins method and optimizer anew in every round. "kept" gives both the state that they had at
            the end of the client's last round: SAMPa's gradient and batch, LookSAM's vector, the base optimizer's
            momentum, and the count of steps. A round that ends with NaN or infinity keeps what was kept before it.
        folder: The folder that holds the kept state of this client alone; None holds it in Flower's ``context.state``,
            which lives as long as the client's SuperNode. Choose a new folder for a new training.
        clip: Maximum norm to which the gradient is clipped, > 0; None does not clip.
        seed: Seeds torch's random numbers of the host, together with the round, for dropout and the like.
        evaluate: A function from the model to the client's metrics, among them "num-examples"; None if the clients do
            not evaluate.
        options: Options of :class:`lowland.Engine`: ``mesh``, ``executor``, ``micro_batch``, ``cut``, ``rng`` and
            ``seed``.

    Raises:
        ArgumentError: An argument breaks its rule.
    """

    method: Method
    model: nn.Module
    optimizer: Optimizer
    loss_fn: LossFn
    batches: Iterable[Any]
    examples: int
    memory: Literal["anew", "kept"] = "anew"
    folder: str | os.PathLike[str] | None = None
    clip: float | None = None
    seed: int = 0
    evaluate: Callable[[nn.Module], Mapping[str, float]] | None = None
    options: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        checks.one_of("memory", self.memory, ("anew", "kept"))
        checks.integer("examples", self.examples, 1, "give the number of this client's training examples")
        checks.integer("seed", self.seed, 0, "0 is a seed")
        refusals.check_options("options", self.options, OPTIONS, "the client decides the rest")
        refusals.check_optimizer(self.optimizer)
        if self.clip is not None and not (isinstance(self.clip, int | float) and 0 < self.clip < math.inf):
            raise ArgumentError(f"clip must be a number > 0, but is {self.clip!r}; None does not clip")
        if self.folder is not None and self.memory != "kept":
            raise ArgumentError(
                f'folder must be None where nothing is kept, but is {str(self.folder)!r}; write memory="kept"'
            )
        if self.optimizer.state:
            raise ArgumentError(
                "optimizer must be new in every round, but has buffers of an earlier one; make it in the function that "
                'makes Local, and keep its buffers by memory="kept"'
            )


def client_app(make: Make) -> ClientApp:
    """A Flower ``ClientApp`` whose local training is an engine.

    ::

        def make(context, config):
            model = Net()
            optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
            batches = my_batches(context.node_config["partition-id"], config["server-round"])
            return Local(method=lowland.SAMPa(), model=model, optimizer=optimizer, loss_fn=loss_fn, batches=batches,
                         examples=400)

        app = client_app(make)

    A message for training has one ``ArrayRecord``, the weights, and a ``ConfigRecord`` with "server-round", as Flower's
    strategies send them. The reply has the trained weights and buffers, and the metrics "num-examples", "loss" (the
    mean over the steps of what the method reports), "steps" and "gradients" (passes with a gradient, in batches).

    Args:
        make: A function ``(context, config) -> Local``, called once for every message. ``config`` is what the server
            sent; ``context`` tells which client this is.
    """
    app = ClientApp()

    def train(message: Message, context: Context) -> Message:
        config = config_of(message)
        local = _made(make, message, context, config)
        metrics = run_round(local, context, config)
        content = RecordDict({"arrays": arrays_of(local.model), "metrics": MetricRecord(metrics)})
        return Message(content, reply_to=message)

    def evaluate(message: Message, context: Context) -> Message:
        local = _made(make, message, context, config_of(message))
        if local.evaluate is None:
            raise UsageError(
                "Local must have evaluate= where the server asks for an evaluation, but has none; give it, or make the "
                "strategy with fraction_evaluate=0.0"
            )
        return Message(RecordDict({"metrics": MetricRecord({**local.evaluate(local.model)})}), reply_to=message)

    app.train()(train)
    app.evaluate()(evaluate)
    return app


def run_round(local: Local, context: Context, config: Mapping[str, Any]) -> dict[str, float]:
    """Train through one round; the weights of ``local.model`` are those of the server before, and trained after.

    Args:
        local: The local training.
        context: The client's context, in which a kept state may be.
        config: The server's settings: "server-round", from 1, and "num-rounds" for methods that go by the progress.

    Returns:
        The metrics of the reply, see :func:`client_app`.

    Raises:
        ArgumentError: There is no batch.
        UsageError: The method goes by the progress of the training, which is not known.
        StateError: The kept state does not fit.
    """
    engine = Engine(local.method, local.model, local.optimizer, local.loss_fn, **local.options)
    if local.memory == "kept":
        found = kept.load(engine, local.optimizer, context, local.folder)
        if "mesh" in local.options:
            agreed(found, local.options["mesh"])
    before, losses = engine.cost.gradients, list[Tensor]()
    with _seeded(local.seed, int(config.get("server-round", 0))):
        for number, batch in enumerate(local.batches):
            if local.method.needs_progress:
                engine.progress = _progress(local, config, number)
            losses.append(engine.backward(batch))
            if local.clip is not None:
                nn.utils.clip_grad_norm_(engine.params, local.clip)
            local.optimizer.step()
            local.optimizer.zero_grad()
    if not losses:
        raise ArgumentError("batches must have at least one batch, but has none; leave this client out of the split")
    loss = float(torch.stack(losses).double().mean())
    if local.memory == "kept" and math.isfinite(loss) and not_finite(arrays_of(local.model)) is None:
        kept.save(engine, local.optimizer, context, local.folder)
    return {
        WEIGHT: local.examples,
        "loss": loss,
        "steps": len(losses),
        "gradients": engine.cost.gradients - before,
    }


def config_of(message: Message) -> dict[str, Any]:
    """What the server sent besides arrays."""
    return {key: value for record in message.content.config_records.values() for key, value in record.items()}


def _made(make: Make, message: Message, context: Context, config: Mapping[str, Any]) -> Local:
    """The local training with the server's weights."""
    records = list(message.content.array_records.values())
    if len(records) != 1:
        raise UsageError(
            f"the server must send one ArrayRecord, but sends {len(records)}; use a strategy such as FedAvg"
        )
    local = make(context, config)
    if not isinstance(local, Local):
        raise ArgumentError(f"make must return a Local, but returned a {type(local).__name__}; return Local(…)")
    load_arrays(local.model, records[0])
    return local


def _progress(local: Local, config: Mapping[str, Any], number: int) -> float:
    """The completed fraction of the federated training before a step of this round."""
    if "num-rounds" not in config or not isinstance(local.batches, Sized):
        raise UsageError(
            f"{local.method.kind} goes by the fraction of the training that is done, so the rounds and this round's "
            'steps must be known; send ConfigRecord({"num-rounds": …}) as train_config, and give batches as a list'
        )
    done = int(config["server-round"]) - 1 + number / len(local.batches)
    return min(done / int(config["num-rounds"]), 1.0)


@contextmanager
def _seeded(seed: int, number: int) -> Iterator[None]:
    """Seed torch's random numbers of the host for one round, so that they do not depend on earlier rounds."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(((seed << 32) + number) % 2**63)
        yield
