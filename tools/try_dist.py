"""Install a built wheel and sdist as a user does, in a fresh virtual environment outside the repository, and use them.

``python tools/try_dist.py dist`` exits with 1 at the first command that fails. First lowland is installed with torch
alone, then with its extra ``lab``.
"""

from __future__ import annotations

import argparse
import os
import re
import shlex
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
# Runs in the new environment. What torch itself needs may be there, and nothing else of the lab's.
TORCH_ALONE = """
import re
from importlib.metadata import distributions, requires, version
import lowland, lowland.testing
assert lowland.__version__ == version("lowland"), (lowland.__version__, version("lowland"))
plain = lambda name: re.match(r"[\\w.-]+", name).group().lower().replace("_", "-")
needed = [line for line in requires("lowland") if "extra ==" not in line]
assert [plain(line) for line in needed] == ["torch"], needed
lab = {plain(line) for line in requires("lowland") if re.search("extra == .lab.", line)}
of_torch = {plain(line) for line in requires("torch")}
present = {plain(d.metadata["Name"]) for d in distributions()}
assert lab and not present & lab - of_torch, present & lab
assert "site-packages" in lowland.__file__, lowland.__file__
print("lowland", lowland.__version__, "with", len(present), "packages, none of the lab's")
"""
COMPARE = "compare --task digits --methods plain sam sampa --seeds 2 --epochs 1 --limit 6 --threads 1"


class Environment:
    """A fresh virtual environment, whose commands run in an empty folder.

    Args:
        folder: An empty folder.
        python: The interpreter that makes the environment.
    """

    def __init__(self, folder: Path, python: str) -> None:
        self.bin = folder / "venv" / "bin"
        self.place = folder / "empty"
        self.place.mkdir()
        subprocess.run([python, "-m", "venv", folder / "venv"], check=True)

    def run(self, program: str, *arguments: str, fails: bool = False) -> str:
        """Run a program of the environment.

        Args:
            program: A file in the environment's ``bin``.
            arguments: Its arguments.
            fails: Whether it must fail.

        Returns:
            What it printed; its errors if it must fail.
        """
        shown = shlex.join([program, *(text.strip().partition("\n")[0] for text in arguments)])
        env = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "VIRTUAL_ENV")}
        ran = subprocess.run(
            [self.bin / program, *arguments], cwd=self.place, env=env, text=True, capture_output=True, check=False
        )
        if (ran.returncode != 0) != fails:
            raise SystemExit(f"{ran.stdout}{ran.stderr}\ntry_dist: this ended with {ran.returncode}: {shown}")
        print(f"{'refused' if fails else 'ok'}: {shown}", flush=True)
        return ran.stderr if fails else ran.stdout

    def install(self, *what: str) -> None:
        """Install with pip, in the versions that the tests run with."""
        self.run("python", "-m", "pip", "install", "--quiet", "-c", str(ROOT / "constraints.txt"), *what)


def first_example() -> str:
    """The first Python block of the README, which needs torch alone."""
    found = re.search(r"^```python\n(.*?)^```", (ROOT / "README.md").read_text(encoding="utf-8"), re.M | re.S)
    assert found is not None
    return found[1]


def try_torch_alone(environment: Environment, wheel: Path, sdist: Path) -> None:
    """Install the sdist, then the wheel over it, and use the library."""
    environment.install(str(sdist))
    environment.install("--no-deps", "--force-reinstall", str(wheel))
    environment.run("python", "-m", "pip", "check")
    print(environment.run("python", "-c", TORCH_ALONE), end="")
    environment.run("python", "-c", first_example())
    environment.run("lowland", "--version")
    for told in (environment.run("lowland", "--help"), environment.run("lowland", "methods", fails=True)):
        assert "pip install 'lowland[lab]'" in told, told


def try_lab(environment: Environment, wheel: Path) -> None:
    """Install the extra, and compare methods from an empty folder."""
    environment.install(f"{wheel}[lab]")
    environment.run("python", "-m", "pip", "check")
    assert "compare" in environment.run("lowland", "--help")
    table = environment.run("lowland", *COMPARE.split())
    assert "2.00 / 1.00" in table, table  # SAMPa's gradients: all of them, and those on the critical path
    assert list(environment.place.rglob("*.html")), "the comparison writes a page"


def main() -> None:
    """Try the wheel and the sdist of a folder."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path, help="the folder with the wheel and the sdist")
    parser.add_argument("--python", default=sys.executable, help="the interpreter; by default this one")
    given = parser.parse_args()
    (wheel,), (sdist,) = given.folder.resolve().glob("*.whl"), given.folder.resolve().glob("*.tar.gz")
    with tempfile.TemporaryDirectory(prefix="lowland-dist-") as folder:
        environment = Environment(Path(folder), given.python)
        print(environment.run("python", "--version"), end="")
        try_torch_alone(environment, wheel, sdist)
        try_lab(environment, wheel)


if __name__ == "__main__":
    main()
