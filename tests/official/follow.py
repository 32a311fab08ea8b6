"""lowland on the problem of a recorded run: the same start, batches, loss, optimizer and random choices."""

from __future__ import annotations

from collections import OrderedDict
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 - the name everybody knows it by
from torch.nn.utils import parameters_to_vector, vector_to_parameters

from lowland import Engine, Method
from official.files import Array, Recorded, examples
from official.methods import method_of, script


class Follower:
    """lowland on a recorded run.

    Attributes:
        weights: After every step, (steps + 1, parameters), as in the file.
        buffers: BatchNorm's running mean and variance after every step, as in the file.
        engine: What took the steps.
        restart: The step before which the optimizer forgets its state: Late's release makes a new one there.
    """

    def __init__(self, run: Recorded, method: Method | None = None) -> None:
        self.run, self.model = run, model_of(run)
        kind = getattr(torch.optim, run.meta["optimizer"])
        self.optimizer = kind(groups_of(run, self.model), **run.meta["optimizer_args"])
        self.engine = Engine(method or method_of(run), self.model, self.optimizer, loss_of(run))
        script(run, self.engine)
        self.restart: int | None = run.meta["method"].get("start")
        self.weights: list[Array] = []
        self.buffers: list[Array] = []
        self._record()

    def go(self) -> Follower:
        """Take the run's steps."""
        for step in range(self.run.steps):
            self._step(step)
        return self

    def _step(self, step: int) -> None:
        if "lr_per_step" in self.run.meta:
            for group in self.optimizer.param_groups:
                group["lr"] = self.run.meta["lr_per_step"][step]
        if step == self.restart:
            self.optimizer.state.clear()
        self.engine.backward(examples(self.run.indices(step)))
        self.optimizer.step()
        self.optimizer.zero_grad()
        self._record()

    def _record(self) -> None:
        self.weights.append(parameters_to_vector(self.model.parameters()).detach().numpy())
        running = [b for name, b in self.model.named_buffers() if name.split(".")[-1].startswith("running_")]
        self.buffers.append(torch.cat([*running, torch.zeros(0)]).numpy())


def model_of(run: Recorded) -> nn.Module:
    """The network, with the run's first weights."""
    bias = run.meta["model"] != "nobias"
    layers: list[tuple[str, nn.Module]] = [("fc1", nn.Linear(6, 8, bias=bias))]
    layers += [("bn1", nn.BatchNorm1d(8))] if run.meta["model"] == "bn" else []
    layers += [("tanh", nn.Tanh()), ("fc2", nn.Linear(8, 4, bias=bias))]
    model = nn.Sequential(OrderedDict(layers)).double()
    assert [name for name, _ in model.named_parameters()] == run.meta["names"]
    assert [list(p.shape) for p in model.parameters()] == run.meta["shapes"]
    vector_to_parameters(torch.from_numpy(run.weights[0].copy()), model.parameters())
    return model


def groups_of(run: Recorded, model: nn.Module) -> Any:
    """The optimizer's parameters, in groups with radii where the run has these."""
    radii = run.meta["method"].get("group_rho")
    if radii is None:
        return model.parameters()
    return [{"params": model.get_submodule(layer).parameters(), "rho": rho} for layer, rho in radii.items()]


def loss_of(run: Recorded) -> Any:
    """The loss ``(model, batch) -> (B,)`` that the run's ``meta.loss`` names."""
    return next(loss for text, loss in LOSSES.items() if run.meta["loss"].startswith(text))


def _decayed(model: nn.Module, batch: Any) -> Tensor:
    squares = torch.stack([p.square().sum() for p in model.parameters()]).sum()
    return _plain(model, batch) + 5e-4 / 2 * squares


def _smooth(model: nn.Module, batch: Any) -> Tensor:
    wanted = torch.full((len(batch[1]), 4), 0.1 / 3, dtype=torch.float64).scatter_(1, batch[1][:, None], 0.9)
    return F.kl_div(model(batch[0]).log_softmax(1), wanted, reduction="none").sum(1)


def _plain(model: nn.Module, batch: Any) -> Tensor:
    return F.cross_entropy(model(batch[0]), batch[1], reduction="none")


LOSSES = {  # the longer text first
    "cross_entropy + 5e-4/2 * sum of squares of all parameters": _decayed,
    "cross_entropy": _plain,
    "smooth_cross_entropy 0.1": _smooth,
}
