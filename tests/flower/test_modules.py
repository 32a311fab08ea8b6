"""The modules import Flower and NumPy alone, and say what to install where Flower is missing."""

from __future__ import annotations

import ast
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "lowland" / "integrations" / "flower"


@pytest.mark.parametrize("path", sorted(FOLDER.glob("*.py")), ids=lambda p: p.stem)
def test_a_module_imports_flower_alone(path: Path) -> None:
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0
            found.add(str(node.module).split(".")[0])
    assert found <= {"torch", "lowland", "numpy", "flwr", *sys.stdlib_module_names}


def test_where_flower_is_missing_the_extra_is_named() -> None:
    program = (
        "import sys; sys.modules['flwr'] = None\n"
        "from lowland.core.errors import MissingExtraError\n"
        "try:\n    import lowland.integrations.flower\n"
        "except MissingExtraError as error:\n    print(error)"
    )
    ran = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, cwd=ROOT)
    assert ran.stdout.strip() == "flwr is not installed; run: pip install 'lowland[flower]'"


def pins(name: str) -> dict[str, str]:
    lines = (ROOT / name).read_text(encoding="utf-8").splitlines()
    return dict(line.split("==") for line in lines if "==" in line)


def test_the_environment_has_the_same_torch_and_numpy() -> None:
    here, there = pins("constraints-flower.txt"), pins("constraints.txt")
    for name in ("torch", "numpy", "scipy", "scikit-learn", "pytest"):
        assert here[name] == there[name]


def test_the_extra_asks_for_the_version_that_is_tested() -> None:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["optional-dependencies"]
    assert extras["flower"][0] == "flwr>=" + ".".join(pins("constraints-flower.txt")["flwr"].split(".")[:2])
