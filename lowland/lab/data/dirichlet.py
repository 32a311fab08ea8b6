"""Splits labelled examples over clients whose proportions of the classes differ."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from lowland.core import checks
from lowland.core.errors import ArgumentError, MissingExtraError
from lowland.lab.data.streams import derived

DRAWS = 10_000  # of splits, until one gives every client enough examples


def dirichlet(labels: Tensor, clients: int, *, alpha: float, seed: int, fewest: int = 1) -> list[Tensor]:
    """Split examples over clients: each class by proportions drawn from a symmetric Dirichlet distribution.

    Whole splits are drawn until every client has ``fewest`` examples, so that the distribution is that of such splits.

    Args:
        labels: The classes of the examples, integers of shape ``(N,)``.
        clients: The number of clients, >= 1.
        alpha: The concentration, > 0: 0.1 gives most clients one or two classes, 100 nearly equal proportions.
        seed: The seed of the split.
        fewest: The fewest examples of a client, >= 1.

    Returns:
        For each client the positions of its examples, int64, ascending. Every example is in one of them.

    Raises:
        ArgumentError: An argument breaks its rule, or no split is found.
        MissingExtraError: NumPy is not installed.

    Reference: Yurochkin, Agarwal, Ghosh, Greenewald, Hoang, Khazaeni: Bayesian Nonparametric Federated Learning of
    Neural Networks. ICML 2019, arXiv 1905.12022. There the proportions are drawn once, and clients may be tiny.

    Example:
        >>> parts = dirichlet(torch.arange(100) % 10, 4, alpha=0.3, seed=0, fewest=10)
        >>> sorted(torch.cat(parts).tolist()) == list(range(100))
        True
    """
    _check(labels, clients, alpha, seed, fewest)
    try:
        import numpy as np
    except ImportError:
        raise MissingExtraError("numpy", "lab") from None
    numbers = np.random.default_rng(derived(seed, "dirichlet"))
    positions = [(labels == label).nonzero().flatten() for label in sorted(set(labels.tolist()))]
    for _ in range(DRAWS):
        parts: list[list[Tensor]] = [[] for _ in range(clients)]
        for found in positions:
            order = found[torch.from_numpy(numbers.permutation(len(found)))]
            ends = np.round(np.cumsum(numbers.dirichlet([alpha] * clients)) * len(found)).astype(int)
            for part, piece in zip(parts, order.tensor_split(ends[:-1].tolist()), strict=True):
                part.append(piece)
        if min(sum(map(len, part)) for part in parts) >= fewest:
            return [torch.cat(part).sort().values for part in parts]
    raise ArgumentError(
        f"fewest must be what a split gives every client, but {DRAWS} splits of {len(labels)} examples over {clients} "
        f"clients with alpha={alpha} gave some client less than {fewest}; take fewer clients, smaller batches, or a "
        "larger alpha"
    )


def _check(labels: Tensor, clients: int, alpha: float, seed: int, fewest: int) -> None:
    if not isinstance(labels, Tensor) or labels.ndim != 1 or labels.is_floating_point() or len(labels) == 0:
        raise ArgumentError(
            f"labels must be integers of shape (N,), but are {_described(labels)}; give the class of each example"
        )
    checks.integer("clients", clients, 1, "take 10")
    checks.integer("seed", seed, 0, "0 is a seed")
    checks.integer("fewest", fewest, 1, "every client needs an example")
    if isinstance(alpha, bool) or not isinstance(alpha, int | float) or not 0 < alpha < math.inf:
        raise ArgumentError(f"alpha must be a number > 0, but is {alpha!r}; take 0.3")
    if clients * fewest > len(labels):
        raise ArgumentError(
            f"fewest must be <= {len(labels) // clients}, the {len(labels)} examples divided by {clients} clients, but "
            f"is {fewest}; take fewer clients or smaller batches"
        )


def _described(labels: object) -> str:
    if isinstance(labels, Tensor):
        return f"{labels.dtype} of shape {tuple(labels.shape)}"
    return f"a {type(labels).__name__}"
