"""Kernels whose results are the same in every run."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

CUBLAS = "CUBLAS_WORKSPACE_CONFIG"
WORKSPACES = ":4096:8"  # of the two values with which cuBLAS repeats its results, the faster one


@contextmanager
def deterministic(device: torch.device) -> Iterator[None]:
    """Repeat the results of a training bit for bit on the same machine; restore all settings at the end.

    On CUDA, backward of attention, of indexing and of padding adds in an order that varies, unless torch is asked for
    other kernels. A kernel without a deterministic form still runs, and torch warns once. cuBLAS reads its setting
    when it is first used, so a process that has used it before should set ``CUBLAS_WORKSPACE_CONFIG`` itself.

    Args:
        device: The device of the training. On a CPU, torch's kernels are deterministic as they are.
    """
    cudnn, memory = torch.backends.cudnn, torch.utils.deterministic
    flags: list[tuple[Any, str, bool]] = [(cudnn, "benchmark", False), (cudnn, "deterministic", True)]
    if device.type == "cuda":
        flags.append((memory, "fill_uninitialized_memory", False))  # lowland and torch fill what they read
    before = [getattr(module, name) for module, name, _ in flags]
    enabled, warn_only = (
        torch.are_deterministic_algorithms_enabled(),
        torch.is_deterministic_algorithms_warn_only_enabled(),
    )
    workspaces = os.environ.get(CUBLAS)
    try:
        for module, name, value in flags:
            setattr(module, name, value)
        if device.type == "cuda":
            os.environ.setdefault(CUBLAS, WORKSPACES)
            torch.use_deterministic_algorithms(True, warn_only=True)
        yield
    finally:
        for (module, name, _), value in zip(flags, before, strict=True):
            setattr(module, name, value)
        torch.use_deterministic_algorithms(enabled, warn_only=warn_only)
        if workspaces is None:
            os.environ.pop(CUBLAS, None)
