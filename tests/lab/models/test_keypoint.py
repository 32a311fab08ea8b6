"""The encoder-decoder: sizes, gradients, and that a score depends on the whole image."""

from __future__ import annotations

import pytest
import torch

from lowland.lab.models.keypoint import HeatMaps


@pytest.mark.parametrize("side", [24, 48])
@pytest.mark.parametrize("width", [8, 16])
def test_scores_of_every_pixel(side: int, width: int) -> None:
    model = HeatMaps(9, width)
    inputs = torch.rand(2, 1, side, side, requires_grad=True)
    scores = model(inputs)
    assert scores.shape == (2, 9, side, side)
    scores[0, 0, 0, 0].backward()
    assert all(p.grad is not None for p in model.parameters())


def test_far_pixels_matter() -> None:
    """A score depends on all pixels up to 32 away, so that hidden joints can be found from the others."""
    model = HeatMaps(2, 8).eval()
    inputs = torch.rand(1, 1, 72, 72, requires_grad=True)
    model(inputs)[0, 0, 36, 36].backward()
    assert inputs.grad is not None
    reached = inputs.grad[0, 0] != 0
    assert bool(reached[4:69, 4:69].all())


def test_size() -> None:
    assert sum(p.numel() for p in HeatMaps(9, 16).parameters()) == 632_409
