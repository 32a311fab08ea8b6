"""Records the parameters, modules and buffers that are registered during a pass, by torch's registration hooks."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any, ClassVar, TypeAlias

from torch import nn
from torch.nn.modules.module import (
    register_module_buffer_registration_hook,
    register_module_module_registration_hook,
    register_module_parameter_registration_hook,
)

Given: TypeAlias = "tuple[nn.Module, dict[str, Any], str]"  # a module, the dictionary that has grown, and the key


class Registrations:
    """Counts the registrations of parameters, modules and new buffers by all modules of the process.

    Attributes:
        count: The number of registrations since the first call of :meth:`watch`.
        log: The new modules and buffers that were registered since the last step began.
    """

    count = 0
    log: ClassVar[list[Given]] = []
    _watching = False

    @classmethod
    def watch(cls) -> None:
        """Begin to count registrations, in all modules of the process."""
        if not cls._watching:
            cls._watching = True
            register_module_parameter_registration_hook(cls._note)
            register_module_module_registration_hook(cls._module)
            register_module_buffer_registration_hook(cls._buffer)

    @classmethod
    def _note(cls, module: nn.Module, name: str, value: Any) -> None:
        cls.count += 1

    @classmethod
    def _module(cls, module: nn.Module, name: str, value: Any) -> None:
        cls.count += 1
        if name not in module._modules:
            cls.log.append((module, module._modules, name))

    @classmethod
    def _buffer(cls, module: nn.Module, name: str, value: Any) -> None:
        if name not in module._buffers:  # a forward may assign a known buffer in every pass
            cls.count += 1
            cls.log.append((module, module._buffers, name))

    @classmethod
    def undo(cls, start: int, modules: Collection[nn.Module]) -> list[tuple[Given, Any]]:
        """Remove what these modules have registered since the log had ``start`` entries.

        Returns:
            The removed entries and their values, for :meth:`redo`.
        """
        if len(cls.log) == start:
            return []
        removed = [((m, d, name), d.pop(name)) for m, d, name in cls.log[start:] if m in modules and name in d]
        del cls.log[start:]
        return removed

    @classmethod
    def redo(cls, removed: list[tuple[Given, Any]]) -> None:
        """Register again what :meth:`undo` has removed."""
        for (module, d, name), value in removed:
            d[name] = value
            cls.log.append((module, d, name))
