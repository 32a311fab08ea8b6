"""The house rules that a parser can check: layers, forbidden calls, sizes, and what `import lowland` loads."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import TypeAlias

ROOT = Path(__file__).parents[1]
MODULES = {
    ".".join(p.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): p
    for p in sorted((ROOT / "lowland").rglob("*.py"))
}
# The folders of docs/architecture.md, each with the folders that it may import from besides itself.
# "" is lowland/__init__.py, the names users import.
UPTO = {  # what a list of folders stands for
    "engine": ["core", "methods", "executors", "engine"],
    "lab": [
        *("core", "methods", "executors", "engine", "", "parallel"),
        *("planner", "sharpness", "testing", "runs", "report"),
    ],
}
FOLDERS: dict[str, list[str]] = {
    "core": [],
    "methods": ["core"],
    "executors": ["core"],
    "engine": ["core", "methods", "executors"],
    "": UPTO["engine"],
    "parallel": ["core", "executors"],
    "planner": [*UPTO["engine"], "", "parallel"],
    "sharpness": [*UPTO["engine"], ""],
    "testing": [*UPTO["engine"], ""],
    "integrations": UPTO["engine"],
    "runs": ["core"],  # of core only errors, see test_records_and_reports_need_no_torch
    "report": ["core", "runs"],
    "lab": UPTO["lab"],
    "bench": [*UPTO["lab"], "lab"],
    "cli": [*UPTO["lab"], "lab", "bench"],
    "__main__": ["cli"],
}
# Within the laboratory: its files are the nouns, and its folders stand on them.
LAB: dict[str, list[str]] = {
    "nouns": ["data"],
    "data": ["nouns"],
    "models": ["data"],
    "tasks": ["nouns", "data", "models"],
    "training": ["nouns", "data", "models"],
    "studies": ["nouns", "data", "models", "training"],
    "survival": ["nouns", "data", "models", "training"],
    "planning": ["nouns", "data", "models", "training"],
    "testing": ["nouns", "data", "models", "training"],
}
Function: TypeAlias = ast.FunctionDef | ast.AsyncFunctionDef
SOURCES = sorted(p for d in ("lowland", "tests", "examples", "benchmarks", "tools") for p in (ROOT / d).rglob("*.py"))


def folder(module: str) -> str:
    name = (module + ".").split(".")[1]
    assert name in FOLDERS, f"{module} is in no folder: add it to FOLDERS here and to docs/architecture.md"
    return name


@cache
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


def ours(module: str) -> set[str]:
    """The modules of lowland that a module imports when it runs."""
    return {name for name in imported(at_runtime(tree(module))) if name.split(".")[0] == "lowland"}


def test_a_module_imports_only_from_folders_below() -> None:
    arrows = [(module, name) for module in MODULES for name in ours(module)]
    wrong = [(m, n) for m, n in arrows if folder(n) not in [*FOLDERS[folder(m)], folder(m)]]
    assert not wrong, "FOLDERS says which folders a folder may import from"


def test_the_laboratory_has_floors_too() -> None:
    inside = [module for module in MODULES if module.startswith("lowland.lab.")]
    arrows = [(m, name) for m in inside for name in ours(m) if name.startswith("lowland.lab.")]
    wrong = [(m, n) for m, n in arrows if room(n) not in [*LAB[room(m)], room(m)]]
    assert not wrong, "LAB says which folders a folder of the laboratory may import from"


def room(module: str) -> str:
    """A folder of the laboratory; "nouns" for its files."""
    name = (module + ".").split(".")[2]
    return name if name in LAB else "nouns"


def test_imports_between_folders_run_one_way() -> None:
    below = list(FOLDERS)
    upward = {
        name: [other for other in may if below.index(other) >= below.index(name)] for name, may in FOLDERS.items()
    }
    assert not {name: wrong for name, wrong in upward.items() if wrong}, (
        "a folder imports from those above it in the list"
    )


def test_the_list_of_folders_is_complete() -> None:
    present = {(m + ".").split(".")[1] for m in MODULES}
    assert set(FOLDERS) == present, "FOLDERS names exactly the folders that exist"


def within(*folders: str) -> list[str]:
    """The modules of some folders."""
    return [module for module in MODULES if folder(module) in folders]


def test_methods_ask_and_do_not_act() -> None:
    for module in within("methods"):
        acts = {c for c in called(module) if c.rpartition(".")[2] in {"backward", "step", "zero_grad"}}
        assert not acts, f"{module}: plans yield probes; executors run models, users step optimizers"
        names = imported(ast.walk(tree(module)))
        assert not any("executors" in name for name in names), f"{module}: not even for typing"


def test_records_and_reports_need_no_torch() -> None:
    for module in within("runs", "report"):
        names = imported(ast.walk(tree(module)))
        assert not [n for n in names if n.split(".")[0] == "torch"], module
        core = {n for n in names if n.startswith("lowland") and folder(n) == "core"}
        assert core <= {"lowland.core.errors"}, module


def test_collectives_and_foreach_have_their_place() -> None:
    exchanging = ["lowland.core.vec", "lowland.core.shards", "lowland.core.wrappers", "lowland.parallel"]
    for module in set(MODULES) - {*exchanging, *within("executors")}:
        text = MODULES[module].read_text(encoding="utf-8")
        assert "_foreach_" not in text, f"{module}: arithmetic on vectors belongs to vec.py"
        if folder(module) in UPTO["engine"]:
            assert "torch.distributed" not in text, f"{module}: collectives belong to the executors"


# What changes in place that no parameter shares memory with.
OWN = {
    "lowland.core.geometry": {"vec.scale_"},  # a gradient that the caller of ascent_ gives away
    "lowland.methods.looksam": {
        "vec.add_",
        "vec.scale_",
        "vec.zero_unless_",
    },  # a reading's gradient; its new direction
    "lowland.methods.sampa": {"vec.lerp_", "vec.zero_unless_"},  # the gradients of its two readings
    "lowland.methods.async_sam": {"vec.zero_unless_"},  # a reading's gradient
    "lowland.methods.vsam": {"vec.zero_unless_"},  # a difference that it has just made
    "lowland.methods.friendly_sam": {"vec.add_"},  # a mean that it has just made
    "lowland.methods.vasso": {"vec.add_"},  # an average that it has just made
    "lowland.methods.xsam": {"vec.add_"},  # a combination that it has just made
    "lowland.methods.le_sam": {"vec.scale_"},  # a displacement that it has just made
    "lowland.engine.lookahead": {"vec.add_", "vec.scale_"},  # a displacement that it has just made
    "lowland.engine.adam": {  # a displacement, or its denominators, that it has just made
        "vec.add_",
        "vec.addcmul_",
        "vec.div_",
        "vec.scale_",
        "vec.shift_",
        "vec.sqrt_",
    },
    "lowland.executors.together": {"vec.copy_", "vec.div_"},  # gradients that it has just made, and by the loss scale
    "lowland.executors.buffers": {"vec.copy_"},  # buffers
    "lowland.executors.norm_stats": {"vec.copy_"},  # running statistics
    "lowland.engine.step": {"vec.add_"},  # the gradients of earlier steps, to which those of this step are added
    "lowland.methods.micro_sam": {"vec.add_", "vec.scale_"},  # the sum that it has just made
    "lowland.executors.passes": {"vec.scale_"},  # gradients of earlier parts, by scales
    "lowland.executors.gradient": {"vec.div_"},  # a gradient, by the loss scale
    "lowland.executors.data_parallel": {"vec.scale_"},  # a copy of what the plan returned
}


def test_weights_move_in_one_place() -> None:
    for module in MODULES:
        nodes = [*ast.walk(tree(module))]
        calls = [n for n in nodes if isinstance(n, ast.Call)]
        moves = {name for n in calls if (name := ast.unparse(n.func)).startswith("vec.") and name.endswith("_")}
        own = OWN.get(module, set())
        changed = {ast.unparse(n.args[0]) for n in calls if n.args and ast.unparse(n.func) in own}
        assert not [name for name in changed if "param" in name], f"{module}: its own vectors, not the weights"
        only = module == "lowland.executors.displacement"
        assert only or not moves - own, f"{module}: only `displaced` moves weights"
        assigned = [n for n in nodes if isinstance(n, ast.Assign | ast.AugAssign | ast.AnnAssign)]
        targets = [t for n in assigned for t in (n.targets if isinstance(n, ast.Assign) else [n.target])]
        data = [t for t in targets if isinstance(t, ast.Attribute) and t.attr == "data"]
        assert not data, f"{module}: never `p.data = …`"


def test_random_numbers_of_other_devices_are_left_alone() -> None:
    for module in MODULES:
        calls = [n for n in ast.walk(tree(module)) if isinstance(n, ast.Call)]
        forks = [n for n in calls if ast.unparse(n.func).endswith("fork_rng")]
        named = all(n.args or any(k.arg == "devices" for k in n.keywords) for n in forks)
        assert named, f"{module}: without devices= it initializes every GPU"
        alone = module == "lowland.lab.training.trainer" or "torch.manual_seed" not in called(module)
        assert alone, f"{module}: torch.default_generator.manual_seed seeds the host alone"  # a run begins in trainer


def test_the_core_never_waits_for_the_device() -> None:
    names = {"item", "tolist", "nonzero", "numpy", "cpu"}
    reads = {m: {c for c in called(m) if c.rpartition(".")[2] in names} for m in within(*UPTO["engine"])}
    assert reads.pop("lowland.core.lagged") == {"tensor.tolist"}, "the one place that reads a device value"
    wrong = {module: calls for module, calls in reads.items() if calls}
    assert not wrong, "engine.later(name, tensor) brings a value to the host without waiting"


def test_files_are_short() -> None:
    lengths = {str(p.relative_to(ROOT)): len(p.read_text(encoding="utf-8").splitlines()) for p in SOURCES}
    assert not {name: n for name, n in lengths.items() if n > 400}, "split it by what it is about"


def test_functions_are_short() -> None:
    nodes = [(module, n) for module in MODULES for n in ast.walk(tree(module))]
    long = [f"{m}.{n.name}, line {n.lineno}" for m, n in nodes if isinstance(n, Function) and _length(n) > 50]
    assert not long, "a function is at most 40 lines of code, 50 with a reason"


def _length(node: Function) -> int:
    """Lines from `def` to the end, without the docstring."""
    first = node.body[0]
    documented = ast.get_docstring(node, clean=False) is not None
    docstring = (first.end_lineno or 0) - first.lineno + 1 if documented else 0
    return (node.end_lineno or 0) - node.lineno + 1 - docstring


def test_the_core_needs_torch_alone() -> None:
    # Not visible in what `import lowland` loads: torch itself loads numpy where it is installed.
    for module in within(*UPTO["engine"], ""):
        roots = {name.split(".")[0] for name in imported(ast.walk(tree(module)))}
        assert roots <= {"torch", "lowland", *sys.stdlib_module_names}, module


def test_import_lowland_loads_torch_and_nothing_else() -> None:
    program = (
        "import json, sys; import torch; before = set(sys.modules); import lowland;"
        "print(json.dumps(sorted(set(sys.modules) - before)))"
    )
    ran = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    loaded: list[str] = json.loads(ran.stdout)
    known = {"torch", "lowland", *sys.stdlib_module_names}
    assert {name.split(".")[0] for name in loaded} <= known
    assert {folder(name) for name in loaded if name.startswith("lowland")} <= {*UPTO["engine"], ""}
