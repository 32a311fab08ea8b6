from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from lowland.core.errors import DataError
from lowland.lab.data.images import ImageSet


def task(dtype: torch.dtype = torch.uint8) -> ImageSet:
    images = (torch.arange(4 * 2 * 3 * 3) % 256).reshape(4, 2, 3, 3).to(dtype)
    targets = torch.tensor([0, 1, 2, 0])
    return ImageSet(
        name="tiny",
        train_inputs=images,
        train_targets=targets,
        clean_targets=targets,
        test_inputs=images[:2],
        test_targets=targets[:2],
        classes=3,
        mean=(10.0, 20.0),
        std=(2.0, 4.0),
    )


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_normalize(dtype: torch.dtype, layout: torch.memory_format) -> None:
    made = task(dtype)
    before = made.train_inputs.clone()
    part = replace(made.parts()["train"], memory_format=layout)
    got = part.normalize(made.train_inputs)
    assert got.dtype == torch.float32
    assert got.is_contiguous(memory_format=layout)
    assert torch.allclose(got[:, 1], (before[:, 1].float() - 20) / 4)
    assert torch.allclose(got[:, 0], (before[:, 0].float() - 10) / 2)
    assert torch.equal(made.train_inputs, before)


def test_shape() -> None:
    assert task().shape == (2, 3, 3)


@pytest.mark.parametrize("field", ["train_targets", "clean_targets", "test_targets"])
def test_labels_must_fit_the_images(field: str) -> None:
    with pytest.raises(DataError, match="as many images as labels"):
        replace(task(), **{field: torch.tensor([0])})


@pytest.mark.parametrize("label", [-1, 3])
def test_labels_must_be_classes(label: int) -> None:
    with pytest.raises(DataError, match=r"test labels must be in 0\.\.2"):
        replace(task(), test_targets=torch.tensor([0, label]))
