"""The files that code is written in: those of the user's own that a file imports, and a hash of each."""

from __future__ import annotations

import ast
import functools
import importlib.util
import sys
import sysconfig
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from lowland.core.outside import hashed

_read: dict[str, tuple[Any, str]] = {}  # by module: its spec, which a reload replaces, and a hash of its file


def of_module(name: str, file: Path) -> str:
    """A hash of a module's file: of the code that runs, where the module was loaded since it was last edited."""
    spec = getattr(sys.modules.get(name), "__spec__", None)
    if spec is None:
        return hashed(file.read_bytes())
    if name not in _read or _read[name][0] is not spec:
        _read[name] = spec, hashed(file.read_bytes())
    return _read[name][1]


def _installed(file: str) -> bool:
    """Whether a file belongs to Python or to an installed package."""
    if {"site-packages", "dist-packages"} & {*Path(file).parts}:
        return True
    return any(Path(file).is_relative_to(sysconfig.get_path(key)) for key in ("stdlib", "platstdlib"))


def own(module: str | None) -> bool:
    """Whether a module is the user's own: neither lowland's, nor Python's, nor of an installed package."""
    if not module or module.split(".")[0] in ("lowland", "builtins"):
        return False
    file = getattr(sys.modules.get(module), "__file__", None)
    return module in sys.modules and (file is None or not _installed(file))


def imports(module: str, file: Path) -> Iterator[tuple[str, Path]]:
    """The modules of the user's own, or of the same package, that a file imports, and those that they import."""
    top, found, waiting = module.split(".")[0], {module}, [(module, file)]
    while waiting:
        name, place = waiting.pop()
        for other in _named(name, place):
            if other not in found and (there := _place(other, top)) is not None:
                found.add(other)
                waiting.append((other, there))
                yield other, there


def _named(module: str, file: Path) -> Iterator[str]:
    """The modules that the import statements of a file name, with the packages that they are in."""
    package = module if file.name == "__init__.py" else module.rpartition(".")[0]
    for level, base, names in _statements(file.read_bytes()):
        parents = package.split(".")[: len(package.split(".")) - level + 1] if level else []
        for name in names:
            parts = [*parents, *(part for part in f"{base}.{name}".split(".") if part)]
            yield from (".".join(parts[:length]) for length in range(1, len(parts) + 1))


@functools.lru_cache(maxsize=1024)
def _statements(source: bytes) -> list[tuple[int, str, list[str]]]:
    """The import statements of some source: how many packages up, from where, and which names."""
    try:
        nodes = [*ast.walk(ast.parse(source))]
    except SyntaxError:  # a file that is named, but never imported
        return []
    plain = [(0, "", [alias.name for alias in node.names]) for node in nodes if isinstance(node, ast.Import)]
    origin = [node for node in nodes if isinstance(node, ast.ImportFrom)]
    return plain + [(node.level, node.module or "", [alias.name for alias in node.names]) for node in origin]


def _place(module: str, own: str) -> Path | None:
    """The file of a module that is the user's own or in the package ``own``; None for all others."""
    top, *rest = module.split(".")
    if top in ("lowland", "torch") or top in sys.stdlib_module_names:
        return None
    try:
        spec = importlib.util.find_spec(top)
    except (ValueError, ImportError):
        return None
    if spec is None or not spec.origin or (top != own and _installed(spec.origin)):
        return None
    if not rest:
        return Path(spec.origin) if spec.origin.endswith(".py") else None
    for root in spec.submodule_search_locations or ():
        for file in (Path(root, *rest).with_suffix(".py"), Path(root, *rest, "__init__.py")):
            if file.is_file():
                return file
    return None
