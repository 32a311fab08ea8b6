"""Settings under which a training repeats its bits."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

import pytest
import torch

from lowland.lab.training.determinism import CUBLAS, deterministic

CPU, CUDA = torch.device("cpu"), torch.device("cuda:0")


def state() -> tuple[Any, ...]:
    return (
        torch.are_deterministic_algorithms_enabled(),
        torch.is_deterministic_algorithms_warn_only_enabled(),
        torch.utils.deterministic.fill_uninitialized_memory,
        torch.backends.cudnn.deterministic,
        torch.backends.cudnn.benchmark,
        os.environ.get(CUBLAS),
    )


@pytest.fixture(autouse=True)
def _unset(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.delenv(CUBLAS, raising=False)
    before = state()
    yield
    assert state() == before


def test_a_gpu_s_kernels_repeat_their_results() -> None:
    with deterministic(CUDA):
        assert state() == (True, True, False, True, False, ":4096:8")


def test_a_cpu_s_kernels_need_nothing() -> None:
    before = state()
    with deterministic(CPU):
        assert state() == (*before[:3], True, False, before[5])


def test_settings_are_restored_after_an_error() -> None:
    before = state()
    with pytest.raises(KeyError), deterministic(CUDA):
        raise KeyError
    assert state() == before


def test_the_user_s_own_settings_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(CUBLAS, ":16:8")
    torch.use_deterministic_algorithms(True)
    try:
        with deterministic(CUDA):
            assert os.environ[CUBLAS] == ":16:8"
        assert state()[:2] == (True, False)
        assert os.environ[CUBLAS] == ":16:8"
    finally:
        torch.use_deterministic_algorithms(False)
        monkeypatch.undo()


def test_memory_without_values_is_not_filled() -> None:
    """Otherwise every torch.empty would be a launch."""
    with deterministic(CUDA):
        assert not torch.utils.deterministic.fill_uninitialized_memory
        x = torch.ones(3, requires_grad=True)
        x[torch.tensor([0, 0, 1])].sum().backward()  # an operation that has a deterministic form
    assert x.grad is not None
    assert x.grad.tolist() == [2.0, 1.0, 0.0]
