"""Stick figures whose joints are to be found: images that are drawn from a seed, without a download.

A figure has a head, a torso, two arms with elbows, and two straight legs. The limbs on the left of the figure are
brighter than those on the right, so that every joint has one right answer. Rectangles hide parts of the figure, and the
hidden joints are to be found, too.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import lru_cache

import torch
from torch import Tensor

from lowland.core.transfer import to_device
from lowland.lab.data.streams import stream

JOINTS = ("head", "neck", "pelvis", "left elbow", "left hand", "right elbow", "right hand", "left foot", "right foot")
_HEAD, _NECK, _PELVIS, _LEFT_ELBOW, _LEFT_HAND, _RIGHT_ELBOW, _RIGHT_HAND, _LEFT_FOOT, _RIGHT_FOOT = range(9)
# The limbs: two joints and the brightness in [0, 1].
LIMBS = (
    (_HEAD, _NECK, 0.8), (_NECK, _PELVIS, 0.8),
    (_NECK, _LEFT_ELBOW, 1.0), (_LEFT_ELBOW, _LEFT_HAND, 1.0), (_PELVIS, _LEFT_FOOT, 1.0),
    (_NECK, _RIGHT_ELBOW, 0.55), (_RIGHT_ELBOW, _RIGHT_HAND, 0.55), (_PELVIS, _RIGHT_FOOT, 0.55),
)  # fmt: skip
HALF_WIDTH = 0.8  # of a limb, in pixels
MARGIN = 2  # the smallest distance of a joint from the edge of the image, in pixels
CHUNK = 100  # the number of images that are drawn at once


@dataclass(frozen=True, eq=False)
class Figures:
    """One part of the data, images of figures, as a :class:`lowland.lab.task.Dataset`.

    Args:
        inputs: The images, (N, 1, S, S), uint8.
        joints: The positions of the joints (column, row), (N, 9, 2) float32, in pixels from the center of the first
            pixel.
        sizes: The size of each figure, (N,) float32: the longer side of the box around its joints, in pixels.
        memory_format: The memory format of the batches.
    """

    inputs: Tensor
    joints: Tensor
    sizes: Tensor
    memory_format: torch.memory_format = torch.contiguous_format

    def __len__(self) -> int:
        return len(self.inputs)

    def to(self, device: torch.device, memory_format: torch.memory_format) -> Figures:
        """The same figures on a device, so that batches need not be copied to it."""
        moved = [each.to(device) for each in (self.inputs, self.joints, self.sizes)]
        return replace(self, inputs=moved[0], joints=moved[1], sizes=moved[2], memory_format=memory_format)

    def batch(self, index: Tensor, generator: torch.Generator | None) -> tuple[Tensor, Tensor, Tensor]:
        """The batch at these positions: inputs (B, 1, S, S) in [-1, 1], joints (B, 9, 2), sizes (B,)."""
        del generator  # without augmentation
        index = to_device(index, self.inputs.device)
        inputs = self.inputs[index].to(torch.float32).div_(127.5).sub_(1)
        return inputs.contiguous(memory_format=self.memory_format), self.joints[index], self.sizes[index]


@lru_cache(maxsize=4)
def draw(part: str, count: int, side: int, noise: float, hidden: int) -> Figures:
    """Draw one part of the data. The arguments alone decide the images, and a smaller part begins a larger one.

    Args:
        part: The name of the part; every part has its own random numbers.
        count: The number of images, >= 1.
        side: Height and width of the images in pixels, >= 24.
        noise: Standard deviation of the noise of each pixel, where 1 is the brightest limb.
        hidden: The number of rectangles that hide parts of each image, >= 0.
    """
    generator = stream(0, "figures", part)
    chunks = [_chunk(generator, side, noise, hidden) for _ in range(math.ceil(count / CHUNK))]
    inputs, joints = (torch.cat(tensors)[:count] for tensors in zip(*chunks, strict=True))
    box = joints.amax(1) - joints.amin(1)  # (N, 2)
    return Figures(inputs, joints, box.amax(1))


def _chunk(generator: torch.Generator, side: int, noise: float, hidden: int) -> tuple[Tensor, Tensor]:
    """The images (CHUNK, 1, S, S), uint8, and the joints (CHUNK, 9, 2) of as many figures."""
    joints = _placed(_poses(generator), generator, side)
    background = 0.05 + 0.2 * torch.rand(CHUNK, 1, 1, generator=generator)
    canvas = torch.maximum(background, _limbs(joints, side))
    for _ in range(hidden):
        canvas = _hide(canvas, generator)
    canvas = canvas + noise * torch.randn(canvas.shape, generator=generator)
    return (canvas.clamp(0, 1) * 255).round().to(torch.uint8).unsqueeze(1), joints


def _poses(generator: torch.Generator) -> Tensor:
    """Joints (CHUNK, 9, 2) of figures with a torso of length 1 and the pelvis at the origin; rows count downward."""
    angles = torch.rand(CHUNK, 8, generator=generator) * 2 - 1  # (CHUNK, 8), in [-1, 1)
    lean, nod, upper_left, lower_left, upper_right, lower_right, leg_left, leg_right = angles.unbind(1)
    lean = lean * 0.5
    neck = -_toward(lean)
    head = neck - 0.45 * _toward(lean + nod * 0.4)
    joints = {_PELVIS: torch.zeros_like(neck), _NECK: neck, _HEAD: head}
    # An angle is measured from straight down; a left limb turns to the figure's left, which is the image's right.
    for elbow, hand, upper, lower, turn in (
        (_LEFT_ELBOW, _LEFT_HAND, upper_left, lower_left, 1.0),
        (_RIGHT_ELBOW, _RIGHT_HAND, upper_right, lower_right, -1.0),
    ):
        shoulder = lean - turn * (1.4 + 1.2 * upper)
        joints[elbow] = neck + 0.55 * _toward(shoulder)
        joints[hand] = joints[elbow] + 0.55 * _toward(shoulder - turn * (0.4 + 1.2 * lower))
    for foot, leg, turn in ((_LEFT_FOOT, leg_left, 1.0), (_RIGHT_FOOT, leg_right, -1.0)):
        joints[foot] = 1.1 * _toward(lean - turn * (0.4 + 0.5 * leg))
    return torch.stack([joints[joint] for joint in range(len(JOINTS))], 1)


def _toward(angle: Tensor) -> Tensor:
    """Unit vectors (N, 2) as (column, row) that point down at angle 0."""
    return torch.stack([-angle.sin(), angle.cos()], -1)


def _placed(joints: Tensor, generator: torch.Generator, side: int) -> Tensor:
    """The joints in pixels: figures of random size at random places, which are inside the image as a whole."""
    low, high = joints.amin(1, keepdim=True), joints.amax(1, keepdim=True)
    room = side - 1 - 2 * MARGIN
    fraction = 0.55 + 0.45 * torch.rand(len(joints), 1, 1, generator=generator)
    scaled = (joints - low) * fraction * room / (high - low).amax(2, keepdim=True)
    free = room - scaled.amax(1, keepdim=True)  # (N, 1, 2)
    return MARGIN + scaled + free * torch.rand(free.shape, generator=generator)


def _limbs(joints: Tensor, side: int) -> Tensor:
    """Images (N, S, S) of the limbs on black: the brightest limb at each pixel, with soft edges."""
    places = torch.arange(side, dtype=joints.dtype)
    columns, rows = places.view(1, 1, -1), places.view(1, -1, 1)
    canvas = torch.zeros(len(joints), side, side)
    for start, end, brightness in LIMBS:
        x, y = (joints[:, start, axis].view(-1, 1, 1) for axis in (0, 1))
        dx, dy = ((joints[:, end] - joints[:, start])[:, axis].view(-1, 1, 1) for axis in (0, 1))
        right, down = columns - x, rows - y  # (N, 1, S), (N, S, 1)
        squared = (dx.square() + dy.square()).clamp_min(1e-6)
        along = (right * (dx / squared) + down * (dy / squared)).clamp_(0, 1)  # (N, S, S): the nearest point's place
        distance = ((right - along * dx).square_() + (down - along * dy).square_()).sqrt_()
        canvas = torch.maximum(canvas, distance.neg_().add_(1 + HALF_WIDTH).clamp_(0, 1).mul_(brightness))
    return canvas


def _hide(canvas: Tensor, generator: torch.Generator) -> Tensor:
    """The images (N, S, S) with one rectangle each, whose sides are a tenth to a third of the image's."""
    count, side = canvas.shape[:2]
    shape = (0.1 + 0.23 * torch.rand(count, 2, generator=generator)) * side
    corner = torch.rand(count, 2, generator=generator) * (side - shape)
    grey = torch.rand(count, 1, 1, generator=generator)
    places = torch.arange(side)
    inside = (places >= corner[..., None]) & (places < (corner + shape)[..., None])  # (N, 2, S)
    return torch.where(inside[:, 0, :, None] & inside[:, 1, None, :], grey, canvas)
