from __future__ import annotations

import torch

from lowland.lab.data.streams import derived, stream


def test_same_key_same_numbers() -> None:
    assert torch.equal(torch.rand(5, generator=stream(1, "a", 2)), torch.rand(5, generator=stream(1, "a", 2)))


def test_all_parts_count() -> None:
    keys = [(1, "a", 2), (2, "a", 2), (1, "b", 2), (1, "a", 3), (1, "a")]
    assert len({derived(*key) for key in keys}) == len(keys)


def test_pinned() -> None:
    """Data orders and weights of published results hang on this value."""
    assert derived(0, "order", 0) == 583293569008121160
