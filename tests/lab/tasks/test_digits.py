from __future__ import annotations

import sys

import pytest
import torch

from lowland.core.errors import MissingExtraError
from lowland.lab.tasks import digits


def test_split_is_fixed_and_stratified() -> None:
    task = digits.load()
    assert task.shape == (1, 8, 8)
    assert (len(task.train_targets), len(task.test_targets)) == (1297, 500)
    # The split must never move, or results of different versions could not be compared.
    assert task.train_targets[:12].tolist() == [2, 1, 2, 5, 1, 5, 9, 3, 0, 5, 9, 3]
    assert task.test_targets[:12].tolist() == [4, 8, 8, 3, 9, 0, 6, 3, 9, 8, 4, 5]
    share = torch.bincount(task.test_targets) / torch.bincount(torch.cat([task.train_targets, task.test_targets]))
    assert torch.allclose(share, torch.tensor(500 / 1797), atol=0.005)


def test_no_image_is_in_both_parts() -> None:
    task = digits.load()
    train = {bytes(image.flatten().tolist()) for image in task.train_inputs}
    test = {bytes(image.flatten().tolist()) for image in task.test_inputs}
    assert not train & test


def test_pixels_are_standardized() -> None:
    task = digits.load()
    inputs = task.parts()["train"].normalize(task.train_inputs)
    assert float(inputs.mean()) == pytest.approx(0, abs=1e-3)
    assert float(inputs.std()) == pytest.approx(1, abs=1e-3)


def test_without_scikit_learn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'lowland\[lab\]'"):
        digits.load()
