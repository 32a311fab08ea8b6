"""A task of your own: `lowland compare --task own_task.py:Text --methods plain sam own_method.py:TwoRadii`."""

from dataclasses import dataclass
from pydoc_data.topics import topics  # Python's language reference: a text that every Python has

import torch
from torch import nn
from torch.nn.functional import cross_entropy
from torch.utils.data import TensorDataset

import lowland
from lowland import lab

PAD = 0  # stands behind the end of a line; the other tokens are ASCII characters


class Net(nn.Sequential):
    def __init__(self, width=16):
        super().__init__(nn.Embedding(128, width), nn.Conv1d(width, 4 * width, 5, padding=4), nn.Linear(4 * width, 128))

    def forward(self, letters):  # (B, T); each letter's successor is guessed from five letters
        mixed = self[1](self[0](letters).mT)[..., : letters.shape[1]]
        return self[2](mixed.relu().mT)  # (B, T, 128)


def summed(logits, targets):  # the cross-entropy of all letters together, and their number; padding is no letter
    losses = cross_entropy(logits.flatten(0, 1), targets.flatten(), ignore_index=PAD, reduction="sum")
    return losses, (targets != PAD).sum()


PERPLEXITY = lab.Metric(
    name="perplexity",
    update=lambda logits, batch: torch.stack(summed(logits, batch[1])),
    compute=lambda totals: float((totals[0] / totals[1]).exp()),
    higher=False,
)


@dataclass(frozen=True, kw_only=True)
class Text(lab.Task):
    """Letters of Python's language reference, each guessed from the five before it."""

    width: int = 16
    metrics = (PERPLEXITY,)

    def datasets(self, root):
        lines = [line.strip()[:64] for key in sorted(topics) for line in topics[key].splitlines() if len(line) > 40]
        rows = [[10, *line.encode("ascii", "replace"), *[PAD] * (64 - len(line))] for line in lines[:1200]]
        inputs, targets = torch.tensor(rows)[:, :-1], torch.tensor(rows)[:, 1:]  # (N, 64)
        return {"train": TensorDataset(inputs[200:], targets[200:]), "test": TensorDataset(inputs[:200], targets[:200])}

    def model(self, name):
        return Net(self.width)

    def loss(self, model, batch):
        return lowland.Loss(*summed(model(batch[0]), batch[1]))

    def recipe(self, model):
        return lab.Recipe(optimizer="adamw", lr=1e-2, weight_decay=0.01, batch_size=32, epochs=8)
