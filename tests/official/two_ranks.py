"""lowland on two DDP ranks, for the runs that were recorded on two."""

from __future__ import annotations

from typing import Any

import torch
from torch.nn.parallel import DistributedDataParallel
from torch.nn.utils import parameters_to_vector

from lowland import Engine
from official.files import Array, examples, recorded
from official.follow import loss_of, model_of
from official.methods import described

# What lowland is asked for, by run; some runs can be had in two ways.
LOCAL = {"ascent_gradient": "local"}
DESCRIBED: dict[str, list[dict[str, Any]]] = {
    "ddp2_davda54_mlp_sgd": [{"key": "sam", "rho": 0.1}],
    "ddp2_composer_mlp_sgd": [{"key": "micro-sam", "rho": 0.1, "m": 1}, {"key": "sam", "rho": 0.1, **LOCAL}],
    "ddp2_release_mlp_sgd": [{"key": "gsam", "rho": 0.1, "alpha": 0.4, **LOCAL}],
}


def trained(name: str, told: dict[str, Any]) -> Array:
    """The weights after every step, (steps + 1, parameters), on this rank: it reads its half of every batch."""
    run = recorded(name)
    model = DistributedDataParallel(model_of(run))
    optimizer = getattr(torch.optim, run.meta["optimizer"])(model.parameters(), **run.meta["optimizer_args"])
    engine = Engine(described(told), model, optimizer, loss_of(run))
    rank, size = torch.distributed.get_rank(), run.meta["batch_size"] // 2
    path = [parameters_to_vector(model.parameters()).detach()]
    for step in range(run.steps):
        engine.backward(examples(run.indices(step)[rank * size :][:size]))
        optimizer.step()
        optimizer.zero_grad()
        path.append(parameters_to_vector(model.parameters()).detach())
    return torch.stack(path).numpy()
