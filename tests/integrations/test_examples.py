"""The examples of frameworks run as their first line says, alone and on two processes, and train what they say."""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parents[2]
EXAMPLES = sorted((ROOT / "examples").glob("with_*.py"))
NEEDED = {
    "with_transformers": ("transformers", "accelerate", "numpy"),
    "with_sft_lora": ("trl", "peft", "datasets"),
    "with_accelerate": ("accelerate",),
    "with_lightning": ("lightning",),
}


def output(name: str, folder: Path, processes: int = 1, script: Path | None = None) -> str:
    """What an example prints; skips the test where a framework is missing. `script` is run in its place."""
    for module in NEEDED[name]:
        if importlib.util.find_spec(module) is None:
            pytest.skip(f"could not import {module!r}")
    hidden = {"OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo", "CUDA_VISIBLE_DEVICES": "", "HF_HUB_OFFLINE": "1"}
    path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    command = [sys.executable, *(launcher if processes > 1 else []), str(script or ROOT / "examples" / f"{name}.py")]
    ran = subprocess.run(
        command,
        cwd=folder,
        env={**os.environ, **hidden, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert ran.returncode == 0, ran.stdout[-2000:] + ran.stderr[-3000:]
    assert not list(folder.iterdir()), "an example leaves nothing behind"
    return ran.stdout


def told(pattern: str, text: str) -> list[Any]:
    """The numbers of the one line that an example prints."""
    found = re.findall(f"^{pattern}$", text, flags=re.MULTILINE)
    assert len(found) == 1, f"rank 0 alone prints, and once:\n{text}"
    return [float(number) for number in (found[0] if isinstance(found[0], tuple) else [found[0]])]


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda p: p.stem)
def test_an_example_fits_on_a_screen_and_is_run(path: Path) -> None:
    assert len(path.read_text(encoding="utf-8").splitlines()) <= 60
    assert path.stem in NEEDED or path.stem == "with_timm", "timm's is run by test_timm.py"


def test_transformers(tmp_path: Path) -> None:
    (accuracy,) = told(r"SAM, 128 steps, test accuracy (\S+)", output("with_transformers", tmp_path))
    assert accuracy > 0.9


def test_sft_lora(tmp_path: Path) -> None:
    pattern = r"LookSAM, (\d+) numbers in the adapters, loss (\S+) -> (\S+)"
    trained, first, last = told(pattern, output("with_sft_lora", tmp_path))
    assert trained < 20_000
    assert last < 0.9 * first


def test_accelerate_trains_on_two_processes_what_it_trains_alone(tmp_path: Path) -> None:
    pattern = r"SAMPa, 160 steps, test accuracy (\S+), norm of the weights (\S+)"
    alone, together = (told(pattern, output("with_accelerate", tmp_path, processes)) for processes in (1, 2))
    assert alone[0] > 0.95
    assert together[0] == pytest.approx(alone[0], abs=0.01)
    assert together[1] == pytest.approx(alone[1], rel=1e-3)  # 160 steps in float32


def test_lightning_on_one_process_and_on_two(tmp_path: Path) -> None:
    for processes in (1, 2):
        (accuracy,) = told(r"SAM, 160 steps, test accuracy (\S+)", output("with_lightning", tmp_path, processes))
        assert accuracy > 0.95


def test_lightning_launches_its_second_process_itself(tmp_path: Path) -> None:
    """Without torchrun, devices=2 starts the script once more."""
    script, folder = tmp_path / "launching.py", tmp_path / "folder"
    folder.mkdir()
    text = (ROOT / "examples" / "with_lightning.py").read_text(encoding="utf-8")
    changed = text.replace('int(os.environ.get("WORLD_SIZE", "1"))', "2").replace(
        "devices=", 'accelerator="cpu", devices='
    )
    assert changed.count("PROCESSES = 2") == 1
    script.write_text(changed, encoding="utf-8")
    (accuracy,) = told(r"SAM, 160 steps, test accuracy (\S+)", output("with_lightning", folder, script=script))
    assert accuracy > 0.95
