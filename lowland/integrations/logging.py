"""Logs the values of a LightningModule once per step, although its training step runs once per pass."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor

from lowland.integrations.temporary import standing_in


class Logging:
    """Replaces ``log`` and ``log_dict`` during a pass.

    A pass that does not report logs nothing. If the pass that reports runs in parts, the values that the parts log
    under one name are logged once: as their mean over the examples, or as their sum, maximum or minimum if the module
    logs them with this ``reduce_fx``.

    Args:
        module: The LightningModule; modules inside it may log, too.
    """

    def __init__(self, module: Any) -> None:
        self.modules = [m for m in module.modules() if callable(getattr(m, "log_dict", None))]
        self._parts: dict[tuple[int, str], list[tuple[Any, int, tuple[Any, ...], dict[str, Any]]]] = {}

    @contextmanager
    def muted(self, mute: bool) -> Iterator[None]:
        """Log nothing in this context if ``mute`` is true."""

        def ignore(*args: Any, **kwargs: Any) -> None:
            """Log nothing."""

        with ExitStack() as stack:
            for module in self.modules if mute else ():
                stack.enter_context(standing_in(module, "log", ignore))
                stack.enter_context(standing_in(module, "log_dict", ignore))
            yield

    @contextmanager
    def of(self, rows: int | None) -> Iterator[None]:
        """Gather the values that a part of ``rows`` examples logs; if ``rows`` is None, a whole batch logs directly."""
        with ExitStack() as stack:
            for number, module in enumerate(self.modules if rows is not None else ()):
                if "log" in vars(module):
                    continue  # muted
                assert rows is not None
                log, log_dict = self._gathering(number, rows)
                stack.enter_context(standing_in(module, "log", log))
                stack.enter_context(standing_in(module, "log_dict", log_dict))
            yield

    def _gathering(self, number: int, rows: int) -> tuple[Any, Any]:
        def log(name: str, value: Any, *args: Any, **kwargs: Any) -> None:
            """Keep a value with its weight, which is the module's ``batch_size`` if it gives one."""
            value = value.detach() if isinstance(value, Tensor) else value
            parts = self._parts.setdefault((number, name), [])
            parts.append((value, rows if kwargs.get("batch_size") is None else kwargs["batch_size"], args, kwargs))

        def log_dict(values: Any, *args: Any, **kwargs: Any) -> None:
            """Keep each value."""
            for name, value in values.items():
                log(name, value, *args, **kwargs)

        return log, log_dict

    def send(self) -> None:
        """Log the gathered values, each name once."""
        for (number, name), parts in self._parts.items():
            values, weights = [part[0] for part in parts], [part[1] for part in parts]
            *_, args, kwargs = parts[-1]
            if kwargs.get("batch_size") is not None:
                kwargs = {**kwargs, "batch_size": sum(weights)}
            self.modules[number].log(name, combined(values, weights, kwargs.get("reduce_fx", "mean")), *args, **kwargs)
        self.forget()

    def forget(self) -> None:
        """Discard the gathered values."""
        self._parts = {}


def combined(values: Sequence[Any], weights: Sequence[int], reduce_fx: Any) -> Any:
    """The value of a batch from the values of its parts.

    Args:
        values: The values of the parts; of objects that are no numbers, such as metrics, the last is returned.
        weights: The weights of the parts in a mean.
        reduce_fx: How Lightning combines the values of batches: "sum", "max", "min" or a mean, by name or function.
    """
    if not all(isinstance(value, Tensor | float | int) for value in values):
        return values[-1]
    name = str(getattr(reduce_fx, "__name__", reduce_fx)).lower()
    if name == "sum":
        return sum(values)
    if name in ("max", "min"):
        return getattr(torch.stack([torch.as_tensor(value) for value in values]), name)()
    return sum(value * n for value, n in zip(values, weights, strict=True)) / sum(weights)
