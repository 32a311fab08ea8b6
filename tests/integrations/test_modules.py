"""Every module of lowland.integrations imports its own framework alone, and tests find nothing that breaks others."""

from __future__ import annotations

import ast
import importlib.util
import inspect
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from lowland import Engine

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "lowland" / "integrations"
FRAMEWORKS = {
    "transformers": {"transformers"},
    "accelerate": {"accelerate"},
    "lightning": {"lightning", "pytorch_lightning"},
    "skorch": {"skorch"},
    "fastai": {"fastai"},
}


@pytest.mark.parametrize("path", sorted(FOLDER.glob("*.py")), ids=lambda p: p.stem)
def test_a_module_imports_its_framework_alone(path: Path) -> None:
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0
            found.add(str(node.module).split(".")[0])
    assert found <= {"torch", "lowland", *FRAMEWORKS.get(path.stem, ()), *sys.stdlib_module_names}


@pytest.mark.parametrize("name", FRAMEWORKS)
def test_a_missing_framework_is_named_with_its_extra(name: str) -> None:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["optional-dependencies"]
    assert name in extras
    hidden = " = ".join(f"sys.modules[{framework!r}]" for framework in sorted(FRAMEWORKS[name]))
    program = (
        f"import sys; {hidden} = None\n"
        "from lowland.core.errors import MissingExtraError\n"
        f"try:\n    import lowland.integrations.{name}\n"
        "except MissingExtraError as error:\n    print(error)"
    )
    ran = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, cwd=ROOT)
    assert ran.stdout.strip() == f"{name} is not installed; run: pip install 'lowland[{name}]'"


@pytest.mark.parametrize("name", ["transformers", "lightning", "fastai"])
def test_options_that_are_passed_on_are_the_engine_s(name: str) -> None:
    tree = ast.parse((FOLDER / f"{name}.py").read_text(encoding="utf-8"))
    (options,) = [
        ast.literal_eval(node.value)
        for node in tree.body
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "OPTIONS"
    ]
    assert set(options) <= set(inspect.signature(Engine).parameters)


def test_the_environment_has_nothing_that_breaks_others() -> None:
    """timm does not import without torchvision, and `accelerate launch` imports timm where it is installed."""
    if Path(sys.prefix).name != ".venv-integrations":
        pytest.skip("the environment of `make test-integrations` is meant")
    for name in ("timm", "torchvision"):
        spec = importlib.util.find_spec(name)
        assert spec is None or not str(spec.origin).startswith(sys.prefix), f"{name} is installed"
