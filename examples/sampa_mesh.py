"""SAMPa's two gradients on two processes: `torchrun --standalone --nproc-per-node 2 examples/sampa_mesh.py`.

With four processes, each of the two groups is data-parallel over two; `python examples/sampa_mesh.py` trains the same
on one device, where one gradient is computed after the other.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.nn.parallel import DistributedDataParallel
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
    probe, replicas, replica = None, 1, 0
    if PROCESSES > 1:
        dist.init_process_group("nccl" if DEVICE.type == "cuda" else "gloo")
        mesh = init_device_mesh(DEVICE.type, (2, PROCESSES // 2), mesh_dim_names=("probe", "data"))
        probe, data = mesh["probe"], mesh["data"]
        replicas, replica = data.size(), data.get_local_rank()
    train, (inputs, targets) = digits()
    # Ranks along "data" divide every batch; both probe groups get the same examples.
    sampler: Any = DistributedSampler(train, num_replicas=replicas, rank=replica)
    loader = DataLoader(train, batch_size // replicas, sampler=sampler, drop_last=True)

    torch.manual_seed(0)  # the same weights everywhere
    model: nn.Module = nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 10)).to(DEVICE)
    if replicas > 1:
        model = DistributedDataParallel(model, process_group=data.get_group())
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=5e-4)
    engine = lowland.Engine(lowland.SAMPa(rho=0.1, lam=0.2), model, optimizer, loss_fn, mesh=probe)
    for epoch in range(epochs):
        sampler.set_epoch(epoch)
        for batch in loader:
            engine.backward(batch)
            optimizer.step()
            optimizer.zero_grad()

    parallel.assert_replicas_equal(model)  # bit for bit
    with torch.no_grad():
        accuracy = float((model(inputs).argmax(1) == targets).float().mean())
        norm = float(nn.utils.parameters_to_vector(model.parameters()).norm())
    if RANK == 0:
        print(f"SAMPa, equal replicas: {PROCESSES}, test accuracy {accuracy:.3f}, norm of the weights {norm:.6f}")
    if PROCESSES > 1:
        dist.barrier()  # otherwise a gloo thread could still use a tensor while Python shuts down, which aborts
        dist.destroy_process_group()
    return accuracy


if __name__ == "__main__":
    main()
