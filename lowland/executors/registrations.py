"""What modules are given while nobody looks: parameters, modules and buffers, told by torch when it happens."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any, ClassVar, TypeAlias

from torch import nn
from torch.nn.modules.module import (
    register_module_buffer_registration_hook,
    register_module_module_registration_hook,
    register_module_parameter_registration_hook,
)

Given: TypeAlias = "tuple[nn.Module, dict[str, Any], str]"  # a module, its dictionary, and the name


class Registrations:
    """Counts how often any module has been given a parameter, a module or a new buffer, while models are watched.

    Attributes:
        count: How often, since the process began.
        log: What modules have been given since the last step began, new modules and buffers.
    """

    count = 0
    log: ClassVar[list[Given]] = []
    _watching = False

    @classmethod
    def watch(cls) -> None:
        """Begin to count; torch calls the hooks for all modules."""
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
        if name not in module._buffers:  # else a forward binds a buffer anew, which may well be every time
            cls.count += 1
            cls.log.append((module, module._buffers, name))

    @classmethod
    def undo(cls, start: int, modules: Collection[nn.Module]) -> list[tuple[Given, Any]]:
        """Take away what these modules have been given since the log had ``start`` entries.

        Returns:
            What was taken away, for :meth:`redo`.
        """
        if len(cls.log) == start:
            return []
        taken = [((m, d, name), d.pop(name)) for m, d, name in cls.log[start:] if m in modules and name in d]
        del cls.log[start:]
        return taken

    @classmethod
    def redo(cls, taken: list[tuple[Given, Any]]) -> None:
        """Give back what was taken away."""
        for (module, d, name), value in taken:
            d[name] = value
            cls.log.append((module, d, name))
