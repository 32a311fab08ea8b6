"""A small federation: its model, the batches of its clients, messages by hand, and clients that fail."""

from __future__ import annotations

import math
import os
import signal
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from flwr.app import ArrayRecord, ConfigRecord, Context, Message, Metadata, RecordDict
from flwr.clientapp import ClientApp
from torch import Tensor, nn

from lowland.integrations.flower import Local, arrays_of, client_app
from lowland.methods import make as make_method

STEPS, ROWS = 4, 6
EXAMPLES = [24, 10, 17]  # of each client


class Net(nn.Module):
    """With BatchNorm, whose buffers are averaged, and dropout, which draws random numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(5, 8), nn.BatchNorm1d(8), nn.Tanh(), nn.Dropout(0.2), nn.Linear(8, 3)
        ).double()

    def forward(self, inputs: Tensor) -> Tensor:
        return self.layers(inputs)


def net(seed: int = 0) -> Net:
    torch.manual_seed(seed)
    return Net()


def loss_fn(model: nn.Module, batch: Any) -> Tensor:
    return nn.functional.cross_entropy(model(batch[0]), batch[1], reduction="none")


def batches(client: int, number: int) -> list[Any]:
    drawn = torch.Generator().manual_seed(100 * client + number)
    return [
        (torch.randn(ROWS, 5, generator=drawn, dtype=torch.float64), torch.randint(3, (ROWS,), generator=drawn))
        for _ in range(STEPS)
    ]


def sgd(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=1e-3)


class Failing(list[Any]):
    """Batches of a client that fails before the second one: as ``how`` says."""

    def __init__(self, given: list[Any], how: str, folder: str) -> None:
        super().__init__(given)
        self.how, self.folder = how, Path(folder)

    def __iter__(self) -> Any:
        for number, (inputs, targets) in enumerate(super().__iter__()):
            if number == 1 and self.how == "kill":
                os.kill(os.getpid(), signal.SIGKILL)
            if number == 1 and self.how == "raise":
                raise ValueError("no more data")
            if number == 1 and self.how == "wait":
                (self.folder / "waits").write_text(str(os.getpid()))
                signal.pause()
            yield (inputs * math.nan if self.how == "nan" else inputs, targets)


def make(context: Any, config: Mapping[str, Any]) -> Local:
    """The local training; the run's settings say the method, what is kept, and "how@client@round" for what fails."""
    run, client, number = context.run_config, int(context.node_config["partition-id"]), int(config["server-round"])
    how, _, place = str(run.get("fails", "")).partition("@")
    model = net()
    given = batches(client, number)
    return Local(
        method=make_method(str(run.get("method", "sampa"))),
        model=model,
        optimizer=sgd(model),
        loss_fn=loss_fn,
        batches=Failing(given, how if place == f"{client}@{number}" else "", str(run.get("folder", ""))),
        examples=EXAMPLES[client],
        memory=run.get("memory", "anew"),
        clip=1.0,
        seed=client,
    )


def app() -> ClientApp:
    return client_app(make)


def context(client: int, **run: Any) -> Context:
    return Context(0, client + 1, {"partition-id": client, "num-partitions": len(EXAMPLES)}, RecordDict(), {**run})


def message(arrays: ArrayRecord, number: int, client: int = 0, kind: str = "train", **config: Any) -> Message:
    """What a server sends, made without a SuperLink."""
    content = RecordDict({"arrays": arrays, "config": ConfigRecord({"server-round": number, **config})})
    metadata = Metadata(0, f"{number} to {client}", 0, client + 1, "", "", 0.0, 1e9, kind)
    return Message(content=content, metadata=metadata)


def first_arrays() -> ArrayRecord:
    return arrays_of(net())


def same(one: ArrayRecord, other: ArrayRecord) -> bool:
    """Bit for bit."""
    return {k: (a.dtype, a.shape, a.data) for k, a in one.items()} == {
        k: (a.dtype, a.shape, a.data) for k, a in other.items()
    }
