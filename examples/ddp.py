"""SAM and mSAM on a model in DistributedDataParallel: `torchrun --standalone --nproc-per-node 2 examples/ddp.py`.

SAM averages two gradients a step over the ranks. mSAM perturbs each part of a batch by that part's own gradient: where
each of two ranks has one, only the result is averaged. `python examples/ddp.py` trains the same on one device.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

import lowland
from lowland import parallel

RANK, PROCESSES = parallel.ranks()  # from torchrun; 0 and 1 without it
DEVICE = parallel.place("auto")
PARTS = 2  # the number of parts into which mSAM cuts a batch


def loss_fn(model: nn.Module, batch: Any) -> Tensor:
    inputs, targets = batch
    return nn.functional.cross_entropy(model(inputs), targets, reduction="none")  # (B,)


def digits(tested: int = 360) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    found = load_digits()
    inputs = torch.tensor(found.data, dtype=torch.float32, device=DEVICE) / 16
    targets = torch.tensor(found.target, device=DEVICE)
    shuffled = torch.randperm(len(targets), generator=torch.Generator().manual_seed(0))
    test, train = shuffled[:tested], shuffled[tested:]
    return (inputs[train], targets[train]), (inputs[test], targets[test])


def train(method: lowland.Method, epochs: int, batch_size: int) -> float:
    """Train with one method and return the test accuracy."""
    (inputs, targets), (test_inputs, test_targets) = digits()
    torch.manual_seed(0)  # the same order of examples on all ranks
    model: nn.Module = nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 10)).to(DEVICE)
    if PROCESSES > 1:
        model = DistributedDataParallel(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=5e-4)
    engine = lowland.Engine(method, model, optimizer, loss_fn)
    for _ in range(epochs):
        # Without the last, smaller batch: DDP's mean over ranks is that over examples only where all have as many.
        for whole in torch.randperm(len(targets)).split(batch_size)[:-1]:
            part = whole.chunk(PROCESSES)[RANK]
            engine.backward((inputs[part], targets[part]))  # returns the loss of this rank's part
            optimizer.step()
            optimizer.zero_grad()

    parallel.assert_replicas_equal(model)  # bit for bit
    with torch.no_grad():
        accuracy = float((model(test_inputs).argmax(1) == test_targets).float().mean())
        norm = float(nn.utils.parameters_to_vector(model.parameters()).norm())
    if RANK == 0:
        print(
            f"{method.kind}, equal replicas: {PROCESSES}, test accuracy {accuracy:.3f}, norm of the weights {norm:.6f}"
        )
    return accuracy


def main(epochs: int = 5, batch_size: int = 64) -> list[float]:
    """Train with SAM, then with mSAM; return the test accuracies."""
    if PROCESSES > 1:
        dist.init_process_group("nccl" if DEVICE.type == "cuda" else "gloo")
    methods = [lowland.SAM(rho=0.05), lowland.MicroSAM(rho=0.05, m=max(1, PARTS // PROCESSES))]
    accuracies = [train(method, epochs, batch_size) for method in methods]
    if PROCESSES > 1:
        dist.barrier()  # otherwise a gloo thread could still use a tensor while Python shuts down, which aborts
        dist.destroy_process_group()
    return accuracies


if __name__ == "__main__":
    main()
