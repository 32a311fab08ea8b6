"""What can be read from functions and modules without running them: iterators, own gradients, and hooks."""

from __future__ import annotations

import dis
import sys
import types
from collections.abc import Iterator, Sequence
from itertools import chain
from typing import Any

from torch import nn
from torch.nn.modules import module as torch_module
from torch.utils.data.dataloader import _BaseDataLoaderIter

from lowland.core.errors import UsageError

# What a function that differentiates a part of the loss itself reads, or one that asks what is differentiated.
_ASKS = {"requires_grad", "autograd", "grad()", "jacrev", "jacfwd", "hessian", "vjp"}
_OWN_GRADIENTS = {*_ASKS, "requires_grad_", "backward", "enable_grad"}
_GLOBAL_HOOKS = (
    "_global_forward_pre_hooks",
    "_global_forward_hooks",
    "_global_backward_pre_hooks",
    "_global_backward_hooks",
)


def drawn_from(value: Any) -> bool:
    """Whether a value is a generator, an iterator of Python, or one of a DataLoader, which each pass would advance."""
    if isinstance(value, types.GeneratorType | _BaseDataLoaderIter):
        return True
    return isinstance(value, Iterator) and type(value).__module__ in ("builtins", "itertools")


def draws(function: types.FunctionType, name: str, value: Any) -> bool:
    """Whether a function names an iterator as a variable, of its closure or of its module; not as an attribute."""
    if not drawn_from(value):
        return False
    return name in function.__code__.co_freevars or name in _loaded(function.__code__) or name == "default"


def refuse_drawn(names: Sequence[str]) -> None:
    """Refuse iterators from which every pass of a step would draw.

    Raises:
        UsageError: There is one.
    """
    if names:
        raise UsageError(
            f"all passes of a step must see the same data, but forward or loss_fn draws from {names[0]}, an iterator, "
            "which every pass would advance; draw in the training loop, and pass what it gives with the batch: "
            "engine.backward((batch, next(iterator)))"
        )


def _loaded(code: types.CodeType) -> set[str]:
    """The global variables that a code reads, also in nested functions."""
    names = {one.argval for one in dis.get_instructions(code) if one.opname in ("LOAD_GLOBAL", "LOAD_NAME")}
    inner = (_loaded(part) for part in code.co_consts if isinstance(part, types.CodeType))
    return names.union(*inner)


def differentiates(function: types.FunctionType, *, asks: bool = False) -> bool:
    """Whether a function, or one inside it, may differentiate a part of the loss itself.

    Constructors are left out, because no pass runs them.

    Args:
        function: The function.
        asks: Leave out those that only run a backward, which gives the same whichever weights require a gradient.
    """
    names = _ASKS if asks else _OWN_GRADIENTS
    codes = [function.__code__] if function.__name__ != "__init__" else []
    for code in codes:  # the list grows in this loop
        if not {*names, "grad"}.isdisjoint(code.co_names) and not names.isdisjoint(_read(code)):
            return True
        codes += [part for part in code.co_consts if isinstance(part, types.CodeType)]
    return False


def _read(code: types.CodeType) -> set[str]:
    """The names that a code reads, with ``grad()`` for a function ``grad``, which is no attribute of a tensor.

    An assignment, as in ``p.requires_grad = False``, reads none.
    """
    read = set()
    for one in dis.get_instructions(code):
        if one.opname.startswith(("LOAD_", "IMPORT_")):
            called = one.opname != "LOAD_ATTR" or (sys.version_info >= (3, 12) and (one.arg or 0) & 1)
            read.add("grad()" if one.argval == "grad" and called else one.argval)
    return read


def hooks_of(m: nn.Module) -> list[Any]:
    """The hooks of a module and of its parameters."""
    held = [m._forward_pre_hooks, m._forward_hooks, m._backward_pre_hooks, m._backward_hooks]
    for p in m._parameters.values():
        held += [getattr(p, name, None) or {} for name in ("_backward_hooks", "_post_accumulate_grad_hooks")]
    return list(chain.from_iterable(hooks.values() for hooks in held))


def global_hooks() -> list[Any]:
    """The hooks that torch calls for all modules."""
    return list(chain.from_iterable(getattr(torch_module, name).values() for name in _GLOBAL_HOOKS))
