"""The parallel examples train on two processes what they train alone; the guide's Python runs on ranks, too."""

from __future__ import annotations

import os
import re
import runpy
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TypeAlias

import pytest
import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from problems import batch, loss_fn, net
from ranks import on_ranks
from torch import Tensor
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, DistributedSampler, TensorDataset

import lowland

pytestmark = pytest.mark.slow  # processes that import torch

ROOT = Path(__file__).parents[2]
METHODS = {"sampa_mesh": {"SAMPa"}, "ddp": {"SAM", "MicroSAM"}, "fsdp2": {"LookSAM"}}
PATIENCE = 240.0  # seconds
LINE = re.compile(
    r"^(\w+), (?:equal replicas|weights held here): (\d+), test accuracy (\S+), norm of the weights (\S+)$"
)
GUIDE = (ROOT / "docs" / "parallel.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```python\n(.*?)^```$", GUIDE, flags=re.MULTILINE | re.DOTALL)
TOOLS: tuple[Any, ...] = (init_device_mesh, fully_shard, DistributedDataParallel, DataLoader, DistributedSampler)
Told: TypeAlias = dict[str, tuple[int, float, float]]  # by method: copies or weights held, accuracy, norm


def told(output: str) -> Told:
    found = [line for line in map(LINE.match, output.splitlines()) if line]
    assert len(found) == len({line[1] for line in found}), f"rank 0 alone prints, and each method once:\n{output}"
    return {line[1]: (int(line[2]), float(line[3]), float(line[4])) for line in found}


@pytest.fixture(scope="module")
def launched() -> Iterator[dict[str, subprocess.Popen[str]]]:
    """All examples on two processes, side by side: most of their time is the import of torch."""
    pytest.importorskip("sklearn")
    hidden = {"OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo", "CUDA_VISIBLE_DEVICES": ""}
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    running = {
        name: subprocess.Popen(
            [*torchrun, f"examples/{name}.py"],
            cwd=ROOT,
            env=os.environ | hidden,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for name in METHODS
    }
    yield running
    for process in running.values():
        process.kill()
        process.wait()


@pytest.mark.parametrize("name", METHODS)
def test_two_processes_train_what_one_trains(
    name: str,
    launched: dict[str, subprocess.Popen[str]],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    runpy.run_path(str(ROOT / "examples" / f"{name}.py"))["main"]()
    alone = told(capsys.readouterr().out)
    output, errors = launched[name].communicate(timeout=PATIENCE)
    assert launched[name].returncode == 0, errors
    together = told(output)
    assert alone.keys() == together.keys() == METHODS[name]
    for method, (held, accuracy, norm) in together.items():
        assert held == (alone[method][0] // 2 if name == "fsdp2" else 2)
        assert accuracy > 0.9
        assert accuracy == pytest.approx(alone[method][1], abs=0.006)  # two of 360 examples
        assert norm == pytest.approx(alone[method][2], rel=1e-4)


def test_the_fingerprint_tells_trainings_apart(capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("sklearn")
    main = runpy.run_path(str(ROOT / "examples" / "ddp.py"))["main"]
    main(epochs=2)
    found = told(capsys.readouterr().out)
    assert found["SAM"][2] != pytest.approx(found["MicroSAM"][2], rel=1e-3)


def weights(model: torch.nn.Module) -> list[Tensor]:
    """All of them, as copies."""
    return [(p.full_tensor() if isinstance(p, DTensor) else p).detach().clone() for p in model.parameters()]


def followed(code: str, folder: str) -> list[Tensor]:
    """Do what a block of the guide says, and train on with what it has made."""
    names: dict[str, Any] = {"model": net(norm=True), "loss_fn": loss_fn, "batch": batch(), "folder": folder}
    names |= {"dataset": TensorDataset(*batch(size=64)), "torch": torch, "lowland": lowland, "dcp": dcp}
    names |= {tool.__name__: tool for tool in TOOLS}
    exec(compile(code.replace('"cuda"', '"cpu"'), "parallel.md", "exec"), names)
    before = weights(names["model"])
    mesh = names.get("mesh")
    own = dist.get_rank()
    if mesh is not None and "probe" in mesh.mesh_dim_names:  # groups are given the same batches
        own = mesh["data"].get_local_rank() if "data" in mesh.mesh_dim_names else 0
    loader = list(names["loader"]) if "loader" in names else [batch(own), batch(own + 10)]
    for part in loader:
        names["engine"].backward(part)
        names["optimizer"].step()
        names["optimizer"].zero_grad()
    after = weights(names["model"])
    assert not any(torch.equal(a, b) for a, b in zip(before, after, strict=True) if a.dim() > 1)
    return after


@pytest.mark.parametrize("code", BLOCKS, ids=range(len(BLOCKS)))
def test_the_guide_s_python_leaves_replicas_equal(code: str, tmp_path: Path) -> None:
    assert len(BLOCKS) >= 8
    # Two ranks take the place of four, along either dimension in turn; test_replicas.py has methods on four.
    shapes = ["(2, 1)", "(1, 2)"] if "(2, 2)" in code else ["(2,)"]
    for shape in shapes:
        found = on_ranks(2, followed, code.replace("(2, 2)", shape), str(tmp_path))
        for rank in found:
            assert all(torch.isfinite(t).all() for t in rank)
            assert all(map(torch.equal, rank, found[0]))
