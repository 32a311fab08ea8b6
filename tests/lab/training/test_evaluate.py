from __future__ import annotations

import pytest
import torch
from torch import nn

from lowland.lab.training.evaluate import cross_entropy, evaluate, fingerprint


class Fixed(nn.Module):
    """Says what it was shown."""

    def forward(self, x):
        return x


LOGITS = torch.tensor([[2.0, 0.0], [0.0, 1.0], [3.0, 0.0]])
TARGETS = torch.tensor([0, 0, 0])
LOSSES = torch.log1p(torch.exp(torch.tensor([-2.0, 1.0, -3.0])))


@pytest.mark.parametrize("cut", [1, 2, 3])
def test_score_does_not_depend_on_the_batches(cut):
    batches = zip(LOGITS.split(cut), TARGETS.split(cut), strict=True)
    score = evaluate(Fixed(), batches)
    assert score.accuracy == 2 / 3
    assert score.loss == pytest.approx(float(LOSSES.mean()))


def test_evaluation_leaves_the_model_alone():
    model = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2), nn.Dropout())
    before = fingerprint(model)
    evaluate(model, [(LOGITS, TARGETS)])
    assert model.training
    assert fingerprint(model) == before


def test_training_loss_is_per_example():
    torch.testing.assert_close(cross_entropy()(Fixed(), (LOGITS, TARGETS, torch.arange(3))), LOSSES)
    smooth = cross_entropy(label_smoothing=0.5)(Fixed(), (LOGITS, TARGETS, torch.arange(3)))
    torch.testing.assert_close(smooth, nn.CrossEntropyLoss(reduction="none", label_smoothing=0.5)(LOGITS, TARGETS))


def test_bf16_is_in_the_forward_pass_alone():
    model, batch = nn.Linear(2, 2), (LOGITS, TARGETS)
    usual, low = cross_entropy()(model, batch), cross_entropy(precision="bf16")(model, batch)
    assert low.dtype == torch.float32
    assert not torch.equal(usual, low)
    torch.testing.assert_close(usual, low, rtol=0.05, atol=0.05)


def test_fingerprints_see_every_bit():
    model = nn.BatchNorm1d(3)
    before = fingerprint(model)
    with torch.no_grad():
        model.weight[0] = torch.nextafter(model.weight[0], torch.tensor(2.0))
    changed = fingerprint(model)
    model.num_batches_tracked += 1
    assert len({before, changed, fingerprint(model)}) == 3
