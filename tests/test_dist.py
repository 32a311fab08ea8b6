"""What is built for users: the wheel, the sdist and their metadata. `make dist` also installs and uses them."""

from __future__ import annotations

import email
import re
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from email.message import Message
from pathlib import Path

import pytest
import yaml

import lowland

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]


@pytest.fixture(scope="module")
def dist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the sdist and the wheel."""
    folder = tmp_path_factory.mktemp("dist")
    build = [sys.executable, "-m", "build", "--no-isolation", "--sdist", "--wheel", "--outdir", str(folder), str(ROOT)]
    ran = subprocess.run(build, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    return folder


@pytest.fixture(scope="module")
def wheel(dist: Path) -> zipfile.ZipFile:
    (path,) = dist.glob("*.whl")
    assert path.name.endswith("-py3-none-any.whl")
    return zipfile.ZipFile(path)


@pytest.fixture(scope="module")
def metadata(wheel: zipfile.ZipFile) -> Message:
    (name,) = (name for name in wheel.namelist() if name.endswith(".dist-info/METADATA"))
    return email.message_from_bytes(wheel.read(name))


def required(metadata: Message, extra: str | None = None) -> set[str]:
    """The requirements without an extra, or those of an extra."""
    lines = [line.partition(";") for line in metadata.get_all("Requires-Dist", [])]
    return {line.strip() for line, _, mark in lines if (extra is None and not mark) or f"extra == '{extra}'" in mark}


def test_the_version_is_in_one_place(metadata: Message) -> None:
    assert metadata["Version"] == lowland.__version__
    assert "version" not in PROJECT
    assert PROJECT["dynamic"] == ["version"]
    assert "version" not in citation()


def test_the_library_needs_torch_alone(metadata: Message) -> None:
    assert {re.split(r"[<>=]", line)[0] for line in required(metadata)} == {"torch"}


def test_the_extras(metadata: Message) -> None:
    assert {"lab", "hf", "lightning", "accelerate", "all"} <= set(metadata.get_all("Provides-Extra", []))
    assert required(metadata, "hf") == required(metadata, "transformers") != set()
    parts = ("lab", "text", "transformers", "accelerate", "lightning", "skorch")
    assert required(metadata, "all") == set().union(*(required(metadata, part) for part in parts))


def test_errors_name_extras_that_exist() -> None:
    sources = [path.read_text(encoding="utf-8") for path in (ROOT / "lowland").rglob("*.py")]
    named = {name for text in sources for name in re.findall(r'MissingExtraError\([^()]*"(\w+)"\)', text)}
    named |= {name for text in sources for name in re.findall(r"pip install 'lowland\[(\w+)\]'", text)}
    assert "lab" in named
    assert named <= set(PROJECT["optional-dependencies"])


def test_the_supported_pythons(metadata: Message) -> None:
    assert metadata["Requires-Python"] == ">=3.11"
    for version in ("3.11", "3.12"):
        assert f"Programming Language :: Python :: {version}" in metadata.get_all("Classifier", [])


def test_the_wheel_has_the_package_and_nothing_else(wheel: zipfile.ZipFile) -> None:
    files = {name for name in wheel.namelist() if ".dist-info/" not in name}
    tree = {str(path.relative_to(ROOT)) for path in (ROOT / "lowland").rglob("*") if path.is_file()}
    assert files == {name for name in tree if "__pycache__" not in name}
    assert {"lowland/py.typed", "lowland/report/page.html"} <= files


def test_the_sdist_has_what_a_packager_needs(dist: Path) -> None:
    (path,) = dist.glob("*.tar.gz")
    with tarfile.open(path) as sdist:
        names = {name.partition("/")[2] for name in sdist.getnames()}
    assert {"README.md", "LICENSE", "CITATION.cff", "CHANGELOG.md", "pyproject.toml", "mkdocs.yml"} <= names
    assert {name.partition("/")[0] for name in names} >= {"lowland", "tests", "docs", "tools", "examples"}
    assert not [name for name in names if name.startswith((".venv", "site/", "dist/", "runs/"))]


def citation() -> dict[str, object]:
    loaded: dict[str, object] = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    return loaded


def test_the_citation_agrees_with_the_package() -> None:
    cited = citation()
    assert {"cff-version", "message", "title", "authors"} <= set(cited)  # the fields that the format requires
    assert cited["license"] == PROJECT["license"]
    assert cited["authors"] == PROJECT["authors"]
