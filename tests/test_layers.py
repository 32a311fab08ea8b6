"""The house rules that a parser can check: layers, forbidden calls, sizes, and what `import lowland` loads."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TypeAlias

import pytest

ROOT = Path(__file__).parents[1]
MODULES = {
    ".".join(p.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): p
    for p in sorted((ROOT / "lowland").rglob("*.py"))
}
# The rows of docs/architecture.md: a module belongs to the entry that names it or its folder.
LAYERS = {
    "vec shards errors checks wrappers": "0",
    "batch cutting loss probe geometry schedule lagged": "1",
    "method methods": "2a",
    "executors modes collectives replicas": "2b",
    "parameters owners doors lookahead plans watch state stats step engine closure": "3",
    "": "front",  # lowland/__init__.py: the names users import
    "sharpness distributed testing": "4",
    "lab": "5",
    "report": "6a",
    "cli __main__": "6b",
}
CORE = ["0", "1"]
MAY_IMPORT = {
    "0": ["0"],
    "1": CORE,
    "2a": [*CORE, "2a"],
    "2b": [*CORE, "2b"],
    "3": [*CORE, "2a", "2b", "3"],
    "front": [*CORE, "2a", "2b", "3"],
    "4": [*CORE, "2a", "2b", "3", "front", "4"],
    "5": [*CORE, "2a", "2b", "3", "front", "4", "5"],
    "6a": ["0", "6a"],  # of layer 0 only errors, see test_report_needs_no_torch
    "6b": [*CORE, "2a", "2b", "3", "front", "4", "5", "6a", "6b"],
}
LAYER_OF = {name: layer for names, layer in LAYERS.items() for name in (names.split() or [""])}
Function: TypeAlias = ast.FunctionDef | ast.AsyncFunctionDef
SOURCES = sorted(p for d in ("lowland", "tests", "examples", "benchmarks") for p in (ROOT / d).rglob("*.py"))


def layer(module: str) -> str:
    name = (module + ".").split(".")[1]
    assert name in LAYER_OF, f"{module} is in no layer: add it to LAYERS here and to docs/architecture.md"
    return LAYER_OF[name]


def tree(module: str) -> ast.Module:
    return ast.parse(MODULES[module].read_text(encoding="utf-8"))


def at_runtime(node: ast.AST) -> Iterator[ast.AST]:
    """All nodes below, without the body of `if TYPE_CHECKING:`."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.If) and ast.unparse(child.test) == "TYPE_CHECKING":
            continue
        yield child
        yield from at_runtime(child)


def imported(nodes: Iterator[ast.AST]) -> set[str]:
    """Full names of what is imported; `from lowland import vec` is `lowland.vec`."""
    found: set[str] = set()
    for node in nodes:
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            base = node.module or ""
            inner = {f"{base}.{alias.name}" for alias in node.names}
            found |= {name if name in MODULES else base for name in inner}
    return found


def called(module: str) -> set[str]:
    """The text of everything that is called, such as `vec.norm` or `tensor.item`."""
    return {ast.unparse(n.func) for n in ast.walk(tree(module)) if isinstance(n, ast.Call)}


@pytest.mark.parametrize("module", MODULES)
def test_a_module_imports_only_from_layers_below(module: str) -> None:
    allowed = MAY_IMPORT[layer(module)]
    ours = {name for name in imported(at_runtime(tree(module))) if name.split(".")[0] == "lowland"}
    wrong = {name: layer(name) for name in ours if layer(name) not in allowed}
    assert not wrong, f"{module} (layer {layer(module)}) may import from {allowed} only"


def test_layers_are_complete() -> None:
    present = {(m + ".").split(".")[1] for m in MODULES}
    assert set(LAYER_OF) == present, "LAYERS names exactly the modules that exist"


@pytest.mark.parametrize("module", [m for m in MODULES if layer(m) == "2a"])
def test_methods_ask_and_do_not_act(module: str) -> None:
    acts = {c for c in called(module) if c.rpartition(".")[2] in {"backward", "step", "zero_grad"}}
    assert not acts, "plans yield probes; executors run models, users step optimizers"
    assert not any("executors" in name for name in imported(ast.walk(tree(module)))), "not even for typing"


@pytest.mark.parametrize("module", [m for m in MODULES if layer(m) == "6a"])
def test_report_needs_no_torch(module: str) -> None:
    names = imported(ast.walk(tree(module)))
    assert not [n for n in names if n.split(".")[0] == "torch"]
    assert {n for n in names if n.startswith("lowland") and layer(n) != "6a"} <= {"lowland.errors"}


@pytest.mark.parametrize("module", MODULES)
def test_collectives_and_foreach_have_their_place(module: str) -> None:
    text = MODULES[module].read_text(encoding="utf-8")
    names = ("shards", "collectives", "replicas", "distributed", "wrappers")
    exchanging = [f"lowland.{name}" for name in names]
    if module not in ("lowland.vec", *exchanging) and not module.startswith("lowland.executors"):
        assert "_foreach_" not in text, "arithmetic on vectors belongs to vec.py"
        if layer(module) in MAY_IMPORT["3"]:
            assert "torch.distributed" not in text, "collectives belong to the executors"


# What changes in place that no parameter shares memory with.
OWN = {
    "lowland.methods.looksam": {"vec.add_"},  # a reading's gradient, which is the plan's own
    "lowland.lookahead": {"vec.add_", "vec.scale_"},  # a displacement that it has just made
    "lowland.executors.batched": {"vec.div_"},  # gradients, by the loss scale
    "lowland.methods.micro_sam": {"vec.add_", "vec.scale_"},  # the sum that it has just made
    "lowland.executors.passes": {"vec.div_", "vec.scale_"},  # gradients, by scales
    "lowland.replicas": {"vec.scale_"},  # a copy of what the plan returned
}


@pytest.mark.parametrize("module", MODULES)
def test_weights_move_in_one_place(module: str) -> None:
    moves = called(module) & {"vec.add_", "vec.copy_", "vec.scale_", "vec.div_"}
    moves -= OWN.get(module, set())
    changed = {ast.unparse(n.args[0]) for n in ast.walk(tree(module)) if isinstance(n, ast.Call) and n.args
               and ast.unparse(n.func) in OWN.get(module, set())}  # fmt: skip
    assert not [name for name in changed if "param" in name], "its own vectors, not the weights"
    assert not moves or module == "lowland.executors.displacement", "only `displaced` moves weights"
    targets = [
        t
        for n in ast.walk(tree(module))
        if isinstance(n, ast.Assign | ast.AugAssign | ast.AnnAssign)
        for t in (n.targets if isinstance(n, ast.Assign) else [n.target])
    ]
    assert not [t for t in targets if isinstance(t, ast.Attribute) and t.attr == "data"], "never `p.data = …`"


@pytest.mark.parametrize("module", [m for m in MODULES if layer(m) in MAY_IMPORT["3"]])
def test_the_core_never_waits_for_the_device(module: str) -> None:
    reads = {c for c in called(module) if c.rpartition(".")[2] in {"item", "tolist", "nonzero", "numpy", "cpu"}}
    if module == "lowland.lagged":
        assert reads == {"tensor.tolist"}, "the one place that reads a device value"
    else:
        assert not reads, "engine.later(name, tensor) brings a value to the host without waiting"


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: str(p.relative_to(ROOT)))
def test_files_are_short(path: Path) -> None:
    assert len(path.read_text(encoding="utf-8").splitlines()) <= 300, "split it by what it is about"


@pytest.mark.parametrize("module", MODULES)
def test_functions_are_short(module: str) -> None:
    long = [f"{n.name}, line {n.lineno}" for n in ast.walk(tree(module)) if isinstance(n, Function) and _length(n) > 50]
    assert not long, "a function is at most 40 lines of code, 50 with a reason"


def _length(node: Function) -> int:
    """Lines from `def` to the end, without the docstring."""
    first = node.body[0]
    documented = ast.get_docstring(node, clean=False) is not None
    docstring = (first.end_lineno or 0) - first.lineno + 1 if documented else 0
    return (node.end_lineno or 0) - node.lineno + 1 - docstring


@pytest.mark.parametrize("module", [m for m in MODULES if layer(m) in [*MAY_IMPORT["front"], "front"]])
def test_the_core_needs_torch_alone(module: str) -> None:
    # Not visible in what `import lowland` loads: torch itself loads numpy where it is installed.
    roots = {name.split(".")[0] for name in imported(ast.walk(tree(module)))}
    assert roots <= {"torch", "lowland", *sys.stdlib_module_names}


def test_import_lowland_loads_torch_and_nothing_else() -> None:
    program = (
        "import json, sys; import torch; before = set(sys.modules); import lowland;"
        "print(json.dumps(sorted(set(sys.modules) - before)))"
    )
    ran = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    loaded: list[str] = json.loads(ran.stdout)
    known = {"torch", "lowland", *sys.stdlib_module_names}
    assert {name.split(".")[0] for name in loaded} <= known
    assert {layer(name) for name in loaded if name.startswith("lowland")} <= {*MAY_IMPORT["front"], "front"}
