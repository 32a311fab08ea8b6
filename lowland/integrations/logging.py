"""What a LightningModule logs while its training step runs several times for one step."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from torch import Tensor

from lowland.integrations.temporary import standing_in


class Logging:
    """Takes the place of ``log`` and ``log_dict`` while a pass runs.

    A pass that does not report logs nothing. Where the pass that reports runs in parts, what these log under one name
    is logged once, as the mean over the examples.

    Args:
        module: The LightningModule; those inside it log, too.
    """

    def __init__(self, module: Any) -> None:
        self.modules = [m for m in module.modules() if callable(getattr(m, "log_dict", None))]
        self._sums: dict[tuple[int, str], tuple[Any, float, tuple[Any, ...], dict[str, Any]]] = {}

    @contextmanager
    def muted(self, mute: bool) -> Iterator[None]:
        """Nothing is logged inside, if so asked."""

        def quiet(*args: Any, **kwargs: Any) -> None:
            """Log nothing."""

        with ExitStack() as stack:
            for module in self.modules if mute else ():
                stack.enter_context(standing_in(module, "log", quiet))
                stack.enter_context(standing_in(module, "log_dict", quiet))
            yield

    @contextmanager
    def of(self, rows: int | None) -> Iterator[None]:
        """Gather what a part of so many examples logs; None for a whole batch, which logs as ever."""
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
            """Add a value up, or keep the last of what is no number, such as a metric."""
            before = self._sums.get((number, name))
            if isinstance(value, Tensor | float | int):
                value = (value.detach() if isinstance(value, Tensor) else float(value)) * rows
                total = value if before is None else before[0] + value
                count = rows + (0 if before is None else before[1])
            else:
                total, count = value, 0
            self._sums[number, name] = total, count, args, kwargs

        def log_dict(values: Any, *args: Any, **kwargs: Any) -> None:
            """Add each value up."""
            for name, value in values.items():
                log(name, value, *args, **kwargs)

        return log, log_dict

    def send(self) -> None:
        """Log the means of what was gathered."""
        for (number, name), (total, count, args, kwargs) in self._sums.items():
            self.modules[number].log(name, total / count if count else total, *args, **kwargs)
        self.forget()

    def forget(self) -> None:
        """Drop what was gathered."""
        self._sums = {}
