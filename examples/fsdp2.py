"""LookSAM on sharded parameters: `torchrun --standalone --nproc-per-node 2 examples/fsdp2.py`.

Every rank holds a part of the weights, of the optimizer's state and of LookSAM's vector. `python examples/fsdp2.py`
trains the same on one device. docs/parallel.md shows how to save it in a sharded checkpoint.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from torch.utils.data import DataLoader, DistributedSampler, TensorDataset

import lowland
from lowland import parallel

RANK, PROCESSES = parallel.ranks()  # from torchrun; 0 and 1 without it
DEVICE = parallel.place("auto")


def loss_fn(model: nn.Module, batch: Any) -> Tensor:
    inputs, targets = batch
    return nn.functional.cross_entropy(model(inputs), targets, reduction="none")  # (B,)


def digits(tested: int = 360) -> tuple[TensorDataset, tuple[Tensor, Tensor]]:
    found = load_digits()
    inputs = torch.tensor(found.data, dtype=torch.float32, device=DEVICE) / 16
    targets = torch.tensor(found.target, device=DEVICE)
    shuffled = torch.randperm(len(targets), generator=torch.Generator().manual_seed(0))
    test, train = shuffled[:tested], shuffled[tested:]
    return TensorDataset(inputs[train], targets[train]), (inputs[test], targets[test])


def main(epochs: int = 5, batch_size: int = 64) -> float:
    """Train and return the test accuracy."""
    torch.manual_seed(0)  # the same weights on all ranks, each of which keeps its shard of them
    model = nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 10)).to(DEVICE)
    if PROCESSES > 1:
        dist.init_process_group("nccl" if DEVICE.type == "cuda" else "gloo")
        mesh = init_device_mesh(DEVICE.type, (PROCESSES,), mesh_dim_names=("data",))
        for layer in (model[0], model[2], model):
            fully_shard(layer, mesh=mesh)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=5e-4)
    engine = lowland.Engine(lowland.LookSAM(rho=0.05, k=5, alpha=0.2), model, optimizer, loss_fn)
    train, (inputs, targets) = digits()
    sampler: Any = DistributedSampler(train, num_replicas=PROCESSES, rank=RANK)
    loader = DataLoader(train, batch_size // PROCESSES, sampler=sampler, drop_last=True)
    for epoch in range(epochs):
        sampler.set_epoch(epoch)
        for batch in loader:
            engine.backward(batch)
            optimizer.step()
            optimizer.zero_grad()

    held = sum(p.to_local().numel() if isinstance(p, DTensor) else p.numel() for p in model.parameters())
    whole = [p.full_tensor() if isinstance(p, DTensor) else p for p in model.parameters()]
    with torch.no_grad():  # evaluated on all ranks, because none has all weights
        accuracy = float((model(inputs).argmax(1) == targets).float().mean())
        norm = float(nn.utils.parameters_to_vector(whole).norm())
    if RANK == 0:
        print(f"LookSAM, weights held here: {held}, test accuracy {accuracy:.3f}, norm of the weights {norm:.6f}")
    if PROCESSES > 1:
        dist.barrier()  # otherwise a gloo thread could still use a tensor while Python shuts down, which aborts
        dist.destroy_process_group()
    return accuracy


if __name__ == "__main__":
    main()
