"""Stick figures: what is drawn, what the loss and the metrics are by hand, and short trainings."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from ranks import on_ranks
from short_runs import METHODS, assert_resumes, config, trained
from torch import nn

from lowland.core.errors import ArgumentError, UnknownNameError
from lowland.lab import names
from lowland.lab.data import figures
from lowland.lab.tasks.keypoints import DISTANCE, PCK, Keypoints
from lowland.testing import check_task

SMALL = Keypoints(examples=64, side=24)


class Fixed(nn.Module):
    """Returns the same scores for every image."""

    def __init__(self, scores: torch.Tensor) -> None:
        super().__init__()
        self.scores = scores

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.scores.expand(len(x), -1, -1, -1)


def test_the_task() -> None:
    assert check_task(SMALL, "heatmaps-small") == []
    assert names.make("keypoints:examples=64,side=24") == SMALL
    assert names.make("keypoints") == Keypoints()


def test_parts_and_batches() -> None:
    parts = SMALL.datasets(None)
    assert (len(parts["train"]), len(parts["test"])) == (64, 1000)
    inputs, joints, sizes = parts["train"].batch(torch.tensor([3, 0]), None)
    assert (inputs.shape, joints.shape, sizes.shape) == ((2, 1, 24, 24), (2, 9, 2), (2,))
    assert (inputs.dtype, joints.dtype) == (torch.float32, torch.float32)
    assert torch.equal(inputs[0], parts["train"].inputs[3] / 127.5 - 1)
    box = joints[1].max(0).values - joints[1].min(0).values
    assert float(sizes[1]) == float(box.max())


def test_a_larger_part_begins_with_a_smaller_one_and_the_test_part_is_another() -> None:
    figures.draw.cache_clear()
    small, large = (Keypoints(examples=n, side=24).datasets(None) for n in (30, 130))
    assert torch.equal(large["train"].inputs[:30], small["train"].inputs)
    assert torch.equal(large["train"].joints[:30], small["train"].joints)
    assert torch.equal(large["test"].inputs, small["test"].inputs)
    train = {bytes(joints.flatten().numpy()) for joints in large["train"].joints}
    assert len(train) == 130
    assert not train & {bytes(joints.flatten().numpy()) for joints in large["test"].joints}


def test_all_joints_are_inside_and_limbs_keep_their_proportions() -> None:
    part = figures.draw("train", 200, 48, 0.0, 0)
    assert float(part.joints.min()) >= 2 - 1e-3
    assert float(part.joints.max()) <= 45 + 1e-3

    def length(a: str, b: str) -> torch.Tensor:
        one, other = (part.joints[:, figures.JOINTS.index(name)] for name in (a, b))
        return (one - other).norm(dim=1)

    torso = length("neck", "pelvis")
    for a, b, expected in [
        ("head", "neck", 0.45), ("neck", "left elbow", 0.55), ("left elbow", "left hand", 0.55),
        ("right elbow", "right hand", 0.55), ("pelvis", "right foot", 1.1), ("pelvis", "left foot", 1.1),
    ]:  # fmt: skip
        torch.testing.assert_close(length(a, b), expected * torso, rtol=1e-4, atol=1e-4)


def test_a_limb_is_as_bright_as_it_should_be_and_noise_and_rectangles_change_the_image() -> None:
    part = figures.draw("train", 100, 48, 0.0, 0)
    left, right = (figures.JOINTS.index(f"{side} foot") for side in ("left", "right"))
    for joint, brightness in ((left, 1.0), (right, 0.55)):
        at = part.joints[:, joint].round().long()
        pixels = part.inputs[torch.arange(100), 0, at[:, 1], at[:, 0]]
        assert int(pixels.min()) >= int(255 * brightness) - 1  # another limb may lie over it, which is no darker
        assert int(pixels.median()) <= round(255 * brightness)
    hidden, noisy = figures.draw("train", 100, 48, 0.0, 1), figures.draw("train", 100, 48, 0.2, 0)
    assert torch.equal(hidden.joints[:50], part.joints[:50])
    changed = (hidden.inputs[:100] != part.inputs).flatten(1).sum(1).double()
    assert 0.02 < float(changed[:100].mean()) / 48**2 < 0.06  # a rectangle has 0.1 to 0.33 of the side, squared: 0.047
    assert not torch.equal(noisy.inputs, part.inputs)


def test_the_loss_by_hand() -> None:
    """Equal scores: the loss is the logarithm of the number of pixels. The target is a normalized Gaussian."""
    joints = torch.full((2, 9, 2), 5.0)
    joints[1, :, 0] = 7.5
    batch = (torch.zeros(2, 1, 24, 24), joints, torch.ones(2))
    equal = SMALL.loss(Fixed(torch.zeros(1, 9, 24, 24)), batch)
    torch.testing.assert_close(equal, torch.full((2,), math.log(24 * 24)))
    scores = torch.zeros(1, 9, 24, 24)
    scores[..., 5, 5] = 3.0
    weights = [
        [math.exp(-((column - x) ** 2 + (row - 5) ** 2) / 2) for row in range(24) for column in range(24)]
        for x in (5, 7.5)
    ]
    total = math.log(24 * 24 - 1 + math.exp(3))
    by_hand = [total - 3 * each[5 * 24 + 5] / sum(each) for each in weights]
    torch.testing.assert_close(SMALL.loss(Fixed(scores), batch), torch.tensor(by_hand))


def test_the_metrics_by_hand() -> None:
    """Two figures of sizes 20 and 40: a joint counts within 2 and 4 pixels. Column and row are not exchanged."""
    scores = torch.zeros(1, 9, 24, 24)
    scores[:, :, 10, 6] = 1.0  # row 10, column 6
    joints = torch.tensor([6.0, 10.0]).expand(2, 9, 2).clone()
    joints[0, 0, 0] += 2.0
    joints[0, 1, 1] += 2.5
    joints[1, 2] += torch.tensor([3.0, 4.0])
    joints[1, 3, 0] -= 4.0
    batch = (torch.zeros(2, 1, 24, 24), joints, torch.tensor([20.0, 40.0]))
    loss, places = SMALL.judged(Fixed(scores), batch)
    assert places.tolist() == [[[6.0, 10.0]] * 9] * 2
    assert PCK.over([(places, batch)]) == pytest.approx(16 / 18)
    assert DISTANCE.over([(places, batch)]) == pytest.approx((2 + 2.5 + 5 + 4) / 18)
    parts = [(places[i : i + 1], tuple(t[i : i + 1] for t in batch)) for i in (0, 1)]
    assert PCK.over(parts) == PCK.over([(places, batch)])
    assert not DISTANCE.higher
    assert loss.shape == (2,)


@pytest.mark.parametrize("method", METHODS)
def test_methods_train_it(tmp_path: Path, method: str) -> None:
    end = trained(tmp_path, config(SMALL, method, model="heatmaps-small"))
    assert not end.get("diverged")
    assert 0 <= end["test"]["pck"] <= 1
    assert 0 < end["test"]["distance"] < 24 * math.sqrt(2)


@pytest.mark.slow
def test_it_resumes(tmp_path: Path) -> None:
    assert_resumes(tmp_path, config(SMALL, "looksam:k=3", model="heatmaps-small"))


@pytest.mark.slow
def test_two_ranks_measure_what_one_process_does(tmp_path: Path) -> None:
    """Both groups of a probe mesh have the same batch, so BatchNorm sees the same examples as in one process."""
    made = config(SMALL, "sampa", model="heatmaps-small")
    alone = trained(tmp_path / "alone", made)
    ends = on_ranks(2, trained, tmp_path / "ranks", replace(made, mesh="probe=2"))
    assert ends[0]["weights_sha256"] == ends[1]["weights_sha256"]
    assert ends[0]["test"]["pck"] == alone["test"]["pck"]
    assert ends[0]["test"]["distance"] == pytest.approx(alone["test"]["distance"], rel=1e-6)


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("examples", 0, "examples must be an integer >= 1, but is 0"),
        ("side", 16, "side must be an integer >= 24, but is 16"),
        ("side", 25, "side must be a multiple of 8, .*but is 25"),
        ("noise", -0.1, "noise must be a number >= 0, but is -0.1"),
        ("hidden", 1.5, "hidden must be an integer >= 0, but is 1.5"),
        ("spread", 0, "spread must be > 0, but is 0"),
    ],
)
def test_bad_fields(field: str, value: float, message: str) -> None:
    with pytest.raises(ArgumentError, match=message):
        Keypoints(**{field: value})


def test_an_unknown_model() -> None:
    with pytest.raises(UnknownNameError, match="did you mean 'heatmaps'"):
        SMALL.model("heatmap")
