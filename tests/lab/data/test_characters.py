from __future__ import annotations

import pytest
import torch

from lowland.core.errors import DataError
from lowland.lab.data.characters import UNKNOWN, Windows, alphabet, symbols


def test_symbols() -> None:
    characters = alphabet("banana!")
    assert characters == ("!", "a", "b", "n")
    assert symbols("nab?!", characters).tolist() == [4, 2, 3, UNKNOWN, 1]


@pytest.mark.parametrize(("count", "windows"), [(9, 2), (10, 2), (12, 2), (13, 3)])
def test_every_character_but_the_first_is_a_target_once(count: int, windows: int) -> None:
    data = Windows(torch.arange(count), 4)
    assert len(data) == windows
    inputs, targets, index = data.batch(torch.arange(windows), None)
    assert inputs.flatten().tolist() == list(range(4 * windows))
    assert targets.flatten().tolist() == list(range(1, 4 * windows + 1))
    assert index.tolist() == list(range(windows))


def test_windows_of_a_training_begin_anywhere() -> None:
    data, draw = Windows(torch.arange(43), 4), torch.Generator().manual_seed(0)
    starts = torch.stack([data.batch(torch.arange(10), draw)[0][:, 0] for _ in range(300)])  # (300, 10)
    inputs, targets, _ = data.batch(torch.arange(10), draw)
    assert torch.equal(inputs + 1, targets)
    assert torch.equal(inputs - inputs[:, :1], torch.arange(4).expand(10, 4))
    assert [sorted(set(column.tolist())) for column in starts.T[:9]] == [
        [4 * i + k for k in range(4)] for i in range(9)
    ]
    assert sorted(set(starts[:, 9].tolist())) == [36, 37, 38]  # the last target is the last character, 42


def test_a_text_that_is_too_short() -> None:
    assert len(Windows(torch.arange(5), 4)) == 1
    with pytest.raises(DataError, match="at least 5 characters, a window and its last target, but has 4"):
        Windows(torch.arange(4), 4)


def test_windows_on_another_device() -> None:
    """The device "meta" stands for the GPU."""
    data = Windows(torch.arange(20), 4).to(torch.device("meta"), torch.contiguous_format)
    assert {t.device.type for t in data.batch(torch.tensor([0, 2]), torch.Generator())} == {"meta"}
