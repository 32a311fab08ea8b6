"""Logs the values of a LightningModule once per step, although its training step runs once per pass."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from torch import Tensor

from lowland.integrations.temporary import standing_in


class Logging:
    """Replaces ``log`` and ``log_dict`` during a pass.

    A pass that does not report logs nothing. If the pass that reports runs in parts, the values that the parts log
    under one name are logged once, as their mean over the examples.

    Args:
        module: The LightningModule; modules inside it may log, too.
    """

    def __init__(self, module: Any) -> None:
        self.modules = [m for m in module.modules() if callable(getattr(m, "log_dict", None))]
        self._sums: dict[tuple[int, str], tuple[Any, float, tuple[Any, ...], dict[str, Any]]] = {}

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
            """Add a value to its sum; of objects that are no numbers, such as metrics, keep the last."""
            before = self._sums.get((number, name))
            if isinstance(value, Tensor | float | int):
                value = (value.detach() if isinstance(value, Tensor) else float(value)) * rows
                total = value if before is None else before[0] + value
                count = rows + (0 if before is None else before[1])
            else:
                total, count = value, 0
            self._sums[number, name] = total, count, args, kwargs

        def log_dict(values: Any, *args: Any, **kwargs: Any) -> None:
            """Add each value to its sum."""
            for name, value in values.items():
                log(name, value, *args, **kwargs)

        return log, log_dict

    def send(self) -> None:
        """Log the means of the gathered values."""
        for (number, name), (total, count, args, kwargs) in self._sums.items():
            self.modules[number].log(name, total / count if count else total, *args, **kwargs)
        self.forget()

    def forget(self) -> None:
        """Discard the gathered values."""
        self._sums = {}
