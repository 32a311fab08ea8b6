"""The network, batches and optimizers of the sections, and a training that puts them together."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from conformance import method_of
from problems import EXAMPLES, loss_fn, parted
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.optim import SGD, Adam, AdamW, Optimizer

import lowland
from lowland.core.at_hand import elsewhere

CLASSES, BATCH, PIXELS = 10, 16, 8
CPU = torch.device("cpu")
SGDS: dict[str, Callable[[Any], Optimizer]] = {
    "sgd": lambda params: SGD(params, lr=0.05, momentum=0.9, weight_decay=1e-3),
    "sgd-nesterov": lambda params: SGD(params, lr=0.05, momentum=0.9, nesterov=True),
    "sgd-fused": lambda params: SGD(params, lr=0.05, momentum=0.9, weight_decay=1e-3, fused=True),
}
ADAMS: dict[str, Callable[[Any], Optimizer]] = {
    "adamw": lambda params: AdamW(params, lr=1e-3),
    "adamw-fused": lambda params: AdamW(params, lr=1e-3, fused=True),
    "adamw-capturable": lambda params: AdamW(params, lr=1e-3, capturable=True),
    "amsgrad": lambda params: Adam(params, lr=1e-3, amsgrad=True),
}
OPTIMIZERS = SGDS | ADAMS
ONLY_ON_A_GPU = "adamw-capturable"


def here() -> torch.device:
    """The first GPU; a CPU if there is none."""
    return torch.device("cuda", 0) if torch.cuda.is_available() else CPU


def there_are_gpus() -> bool:
    return here().type == "cuda"


def suits(text: str, optimizer: str) -> bool:
    """Whether a method trains with an optimizer.

    AdaSAM refuses Adam without amsgrad. SL-SAM leaves some gradients None, and torch's fused SGD fails if a parameter
    gets its first gradient in a later step than others.
    """
    if text.startswith("adasam"):
        return optimizer not in ADAMS or optimizer == "amsgrad"
    return not (text.startswith("sl-sam") and optimizer == "sgd-fused")


class Net(nn.Module):
    """A small network with the layers that matter: convolutions, BatchNorm, dropout, LayerNorm, a linear layer."""

    def __init__(self, dropout: float = 0.0) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 8, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(8)
        self.drop = nn.Dropout(dropout)
        self.second = nn.Conv2d(8, 16, 3, padding=1)
        self.pooled = nn.LayerNorm(16)
        self.last = nn.Linear(16, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(B, 3, H, W)`` to logits ``(B, CLASSES)``."""
        x = torch.tanh(self.drop(self.norm(self.first(x))))
        logits: Tensor = self.last(self.pooled(torch.tanh(self.second(x)).mean((2, 3))))
        return logits


def network(dropout: float = 0.0, seed: int = 0) -> Net:
    """Make a network with equal weights at every call."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        return Net(dropout)


def batch_of(step: int, device: torch.device, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    """The batch of a step: inputs, classes, and the positions of the examples in a training set of ``EXAMPLES``."""
    generator = torch.Generator().manual_seed(step)
    inputs = torch.randn(BATCH, 3, PIXELS, PIXELS, generator=generator, dtype=torch.float64)
    classes = torch.randint(CLASSES, (BATCH,), generator=generator)
    positions = (BATCH * step + torch.arange(BATCH)) % EXAMPLES
    return inputs.to(device, dtype), classes.to(device), positions.to(device)


def half_precision(dtype: torch.dtype) -> Callable[[nn.Module, Any], Tensor]:
    """A loss function whose forward runs under autocast."""

    def loss(model: nn.Module, batch: Any) -> Tensor:
        with torch.autocast(batch[0].device.type, dtype):
            logits = model(batch[0])
        return cross_entropy(logits.float(), batch[1], reduction="none")

    return loss


class Training:
    """A method that trains the network.

    Args:
        text: The method, as ``conformance`` spells it.
        optimizer: A key of ``OPTIMIZERS``; by default SGD, or AdamW for a method that reads its second moment.
        device: The device; by default the GPU if there is one.
        dtype: The dtype of weights and inputs.
        dropout: The dropout rate.
        wrap: Wraps the network, for example in DistributedDataParallel.
        loss: The loss function.
        gpu_branches: On a CPU, take the branches of a GPU.
        options: Further arguments of the engine.
    """

    def __init__(
        self,
        text: str,
        optimizer: str | None = None,
        *,
        device: torch.device | None = None,
        dtype: torch.dtype = torch.float64,
        dropout: float = 0.0,
        wrap: Callable[[Net], nn.Module] = lambda net: net,
        loss: Callable[..., Tensor] = loss_fn,
        gpu_branches: bool = True,
        **options: Any,
    ) -> None:
        self.device, self.dtype, self.gpu_branches = device or here(), dtype, gpu_branches
        self.net = network(dropout).to(self.device, dtype)
        self.model = wrap(self.net)
        base = OPTIMIZERS[optimizer or ("adamw" if "preconditioned" in text else "sgd")]
        self.optimizer, self.scaler = base(self.net.parameters()), options.get("scaler")
        self.engine = lowland.Engine(method_of(text), self.model, self.optimizer, parted(text, loss), **options)

    def branches(self) -> AbstractContextManager[None]:
        """A context in which arithmetic takes the branches of a GPU; see ``gpu_branches``."""
        return elsewhere() if self.gpu_branches and self.device.type == "cpu" else nullcontext()

    def run(
        self, steps: int, start: int = 0, around: Callable[[], AbstractContextManager[Any]] = nullcontext
    ) -> Training:
        """Train some steps.

        Args:
            steps: The number of steps.
            start: The number of the first step, which chooses the batches.
            around: Makes a context for every ``backward``; the batch is on the device before it is entered.
        """
        for number in range(start, start + steps):
            batch = batch_of(number, self.device, self.dtype)
            with around(), self.branches():
                self.engine.backward(batch)
            self.step()
        return self

    def step(self) -> None:
        """Step the optimizer, through the scaler if there is one."""
        if self.scaler is None:
            self.optimizer.step()
        else:
            self.scaler.step(self.optimizer)
            self.scaler.update()
        self.optimizer.zero_grad()

    def weights(self) -> list[Tensor]:
        """Copies of the weights on the CPU, gathered if they are sharded."""
        found = [p.full_tensor() if hasattr(p, "full_tensor") else p for p in self.net.parameters()]
        return [t.detach().to(CPU, torch.float64, copy=True) for t in found]


@contextmanager
def deterministic() -> Iterator[None]:
    """Operations give the same bits at every call, where torch has such an algorithm."""
    before = torch.backends.cudnn.deterministic
    torch.backends.cudnn.deterministic = True
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(False)
        torch.backends.cudnn.deterministic = before


def difference(one: Training, other: Training) -> float:
    """The largest difference between the weights of two trainings, and between their running statistics."""
    statistics = [[b.detach().cpu().double() for b in t.net.buffers()] for t in (one, other)]
    return largest_difference(one.weights() + statistics[0], other.weights() + statistics[1])


def largest_difference(one: Sequence[Tensor], other: Sequence[Tensor]) -> float:
    """The largest difference between entries of two lists of tensors; NaN if an entry is NaN."""
    return float(torch.stack([(x - y).abs().max() for x, y in zip(one, other, strict=True)]).max())
