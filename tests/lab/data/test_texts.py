from __future__ import annotations

import torch

from lowland.lab.data.texts import Texts

EXAMPLES = [[1, 7, 2], [1, 2], [1, 4, 5, 6, 2], [1, 9, 2]]


def made() -> Texts:
    return Texts.of(EXAMPLES, [0, 1, 1, 0])


def test_a_batch_is_as_wide_as_its_longest_example() -> None:
    tokens, targets, index = made().batch(torch.tensor([3, 1]), None)
    assert tokens.tolist() == [[1, 9, 2], [1, 2, 0]]
    assert targets.tolist() == [0, 1]
    assert index.tolist() == [3, 1]
    assert made().batch(torch.tensor([2, 1, 2]), None)[0].tolist() == [EXAMPLES[2], [1, 2, 0, 0, 0], EXAMPLES[2]]


def test_every_example_is_itself() -> None:
    texts = made()
    assert len(texts) == 4
    for place, example in enumerate(EXAMPLES):
        assert texts.batch(torch.tensor([place]), torch.Generator())[0].tolist() == [example]


def test_texts_on_another_device() -> None:
    """The device "meta" stands for the GPU; lengths stay on the CPU, where the width of a batch is computed."""
    texts = made().to(torch.device("meta"), torch.contiguous_format)
    tokens, targets, index = texts.batch(torch.tensor([0, 2]), None)
    assert {t.device.type for t in (tokens, targets, index)} == {"meta"}
    assert tokens.shape == (2, 5)
