from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor
from waiting import NoWaiting

from lowland.core.errors import ArgumentError
from lowland.lab.data import images as module
from lowland.lab.data.images import Augmentation, Images


def images(count: int = 600, size: int = 6, dtype: torch.dtype = torch.uint8) -> Tensor:
    """Every pixel of an image another value, none of them black."""
    pixels = torch.arange(1, 1 + 2 * size * size).reshape(2, size, size)
    return (pixels + torch.zeros(count, 1, 1, 1, dtype=torch.int64)).to(dtype)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_every_image_is_a_crop_of_its_padded_self() -> None:
    """Against a loop over images, offsets and flips."""
    batch, padding, size = images(), 2, 6
    got = Augmentation(padding=padding)(batch, generator())
    padded = F.pad(batch[0], (padding,) * 4)
    crops = {
        (down, right, flip): crop.flip(-1) if flip else crop
        for down in range(5)
        for right in range(5)
        for crop in [padded[:, down : down + size, right : right + size]]
        for flip in (False, True)
    }
    seen = [next(k for k, crop in crops.items() if torch.equal(image, crop)) for image in got]
    assert set(seen) == set(crops)  # 600 images, 50 ways: all of them occur


def test_type_shape_and_input_are_kept() -> None:
    for dtype in (torch.uint8, torch.float32):
        batch = images(dtype=dtype)
        before = batch.clone()
        got = Augmentation()(batch, generator())
        assert got.dtype == dtype
        assert got.shape == batch.shape
        assert torch.equal(batch, before)


def test_depends_on_the_generator_alone() -> None:
    augmentation = Augmentation()
    torch.manual_seed(1)
    first = augmentation(images(), generator(3))
    state = torch.get_rng_state()
    torch.manual_seed(2)
    assert torch.equal(first, augmentation(images(), generator(3)))
    assert not torch.equal(first, augmentation(images(), generator(4)))
    torch.manual_seed(1)
    augmentation(images(), generator(3))
    assert torch.equal(torch.get_rng_state(), state)


def test_parts_can_be_switched_off_without_changing_the_other() -> None:
    both = Augmentation(padding=1)(images(), generator())
    crop = Augmentation(padding=1, flip=False)(images(), generator())
    flip = Augmentation(padding=0)(images(), generator())
    flipped = (flip != images()).flatten(1).any(1)
    assert 240 < int(flipped.sum()) < 360
    assert torch.equal(both, torch.where(flipped[:, None, None, None], crop.flip(-1), crop))
    assert torch.equal(Augmentation(padding=0, flip=False)(images(), generator()), images())


def test_one_image() -> None:
    assert Augmentation()(images(1), generator()).shape == (1, 2, 6, 6)


@pytest.mark.parametrize("padding", [-1, 1.5, True])
def test_bad_padding(padding: object) -> None:
    with pytest.raises(ArgumentError, match="padding must be an integer >= 0"):
        Augmentation(padding=padding)  # type: ignore[arg-type]


def part(device: str) -> Images:
    inputs, targets = images(20).to(device), torch.arange(20).to(device)
    return Images(inputs, targets, mean=(3.0, 4.5), std=(2.0, 3.0), augmentation=Augmentation(padding=1))


def test_a_batch_on_a_gpu_does_not_wait() -> None:
    """The device "meta" stands for the GPU."""
    data, index = part("meta"), torch.tensor([3, 1, 4])
    module._per_channel.cache_clear()
    with NoWaiting() as guard:
        inputs, targets, positions = data.batch(index, generator())
        first = guard.copies
        data.batch(index, generator())
    assert {t.device.type for t in (inputs, targets, positions)} == {"meta"}
    assert first == 6  # positions, two offsets, flips, mean and standard deviation
    assert guard.copies == 2 * first - 2  # the last two stay on the device


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_kept_means_follow_the_default_dtype(dtype: torch.dtype) -> None:
    data, before = part("cpu"), torch.get_default_dtype()
    try:
        torch.set_default_dtype(dtype)
        mean, std = (torch.tensor(v).view(1, -1, 1, 1) for v in (data.mean, data.std))
        expected = data.inputs.float().sub_(mean).div_(std)
        assert torch.equal(data.normalize(data.inputs), expected)
        assert torch.equal(data.normalize(data.inputs), expected)
    finally:
        torch.set_default_dtype(before)
