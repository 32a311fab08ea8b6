"""The user's own source files that a file imports, and their hashes."""

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

_read: dict[str, tuple[Any, str]] = {}  # by module: its spec, which a reload replaces, and its file's hash


def of_module(name: str, file: Path) -> str:
    """A hash of a module's file; for a loaded module it is computed once, so that later edits do not change it."""
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
    """Whether a module is the user's own: not of lowland, of Python, or of an installed package."""
    if not module or module.split(".")[0] in ("lowland", "builtins"):
        return False
    file = getattr(sys.modules.get(module), "__file__", None)
    return module in sys.modules and (file is None or not _installed(file))


def imports(module: str, file: Path) -> Iterator[tuple[str, Path]]:
    """The modules, and their files, that a file imports directly or indirectly.

    Only the user's own modules and the modules of the same package are included.
    """
    top, known, queue = module.split(".")[0], {module}, [(module, file)]
    while queue:
        name, path = queue.pop()
        for other in _named(name, path):
            if other not in known and (source_file := _place(other, top)) is not None:
                known.add(other)
                queue.append((other, source_file))
                yield other, source_file


def _named(module: str, file: Path) -> Iterator[str]:
    """The modules in the import statements of a file, and the packages that contain them."""
    package = module if file.name == "__init__.py" else module.rpartition(".")[0]
    for level, base, names in _statements(file.read_bytes()):
        parents = package.split(".")[: len(package.split(".")) - level + 1] if level else []
        for name in names:
            parts = [*parents, *(part for part in f"{base}.{name}".split(".") if part)]
            yield from (".".join(parts[:length]) for length in range(1, len(parts) + 1))


@functools.lru_cache(maxsize=1024)
def _statements(source: bytes) -> list[tuple[int, str, list[str]]]:
    """The import statements of a source: the level of a relative import, the module, and the imported names."""
    try:
        nodes = [*ast.walk(ast.parse(source))]
    except SyntaxError:  # such a file is never imported
        return []
    plain = [(0, "", [alias.name for alias in node.names]) for node in nodes if isinstance(node, ast.Import)]
    origin = [node for node in nodes if isinstance(node, ast.ImportFrom)]
    return plain + [(node.level, node.module or "", [alias.name for alias in node.names]) for node in origin]


def _place(module: str, own: str) -> Path | None:
    """The file of a module that is the user's own or in the package ``own``; None for other modules."""
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
