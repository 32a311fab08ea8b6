"""What defines a run: its configuration, its name, and the first line of its run file."""

from __future__ import annotations

import dataclasses
import json
import math
import platform
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from lowland.core import checks
from lowland.core.errors import StateError
from lowland.core.geometry import Geometry
from lowland.lab.budget import Budget
from lowland.lab.data.noise import NoiseKind
from lowland.lab.recipe import Recipe
from lowland.methods import GEOMETRIES, key_of
from lowland.methods.base import Method
from lowland.methods.outside import source
from lowland.parallel import World, job, parse, place

IDENTITY = ("task", "model", "seed", "recipe", "noise", "budget", "method", "device", "threads")
"""The fields of a config line that decide the trajectory; two runs that share them are the same run.

The method comes after what its defaults depend on, so that of two runs the cause of a difference is named first.
"""


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """One run, complete: equal configurations give equal weights, bit for bit, on the same machine.

    Args:
        task: Key in ``TASKS``.
        model: Key in ``MODELS``, or a torchvision or timm name.
        method: Method as text, such as ``sampa:rho=0.1``.
        seed: Of initialization, data order, augmentation, label noise and the method's own draws.
        recipe: Optimizer and schedule.
        budget: What the run may spend.
        noise: Share of wrong training labels, in [0, 1).
        noise_kind: ``symmetric`` or ``asymmetric``.
        data: Folder of the data files; None is the environment variable ``LOWLAND_DATA``.
        threads: Of PyTorch on the CPU, >= 1; None leaves its choice.
        device: ``cpu``, ``cuda``, or ``auto`` for a GPU where there is one.
        mesh: How the ranks that torchrun starts share the work, such as ``probe=2,data=2``; None divides every batch.
            On a single process it changes nothing but what a rank's share of a batch alone would have changed.
        shard: Whether ``fully_shard`` divides the weights over the data dimension; otherwise every rank has all.
        tensorboard: Whether to write event files.
        checkpoint_every: Steps between checkpoints, >= 1; None saves by the clock, every half minute or less often.
        keep: Checkpoints kept, >= 1.
    """

    task: str
    model: str
    method: str
    seed: int
    recipe: Recipe
    budget: Budget
    noise: float = 0.0
    noise_kind: NoiseKind = "symmetric"
    data: Path | None = None
    threads: int | None = None
    device: str = "auto"
    mesh: str | None = None
    shard: bool = False
    tensorboard: bool = False
    checkpoint_every: int | None = None
    keep: int = 2

    def __post_init__(self) -> None:
        checks.whole("seed", self.seed, 0, "number seeds from 0")
        if self.mesh is not None:
            parse(self.mesh)
        checks.whole("keep", self.keep, 1, "2 survives a damaged checkpoint")
        if self.checkpoint_every is not None:
            checks.whole("checkpoint_every", self.checkpoint_every, 1, "None saves by the clock")
        if self.threads is not None:
            checks.whole("threads", self.threads, 1, "None leaves the choice to PyTorch")

    @property
    def name(self) -> str:
        """The run folder's name: ``digits-mlp-sampa_rho=0.1-seed0``."""
        noise = f"-{self.noise_kind}{self.noise:g}" if self.noise else ""
        return _file_safe(f"{self.task}-{self.model}-{self.method}{noise}-seed{self.seed}")

    def on(self) -> torch.device:
        """The device this run trains on."""
        return place(self.device)


def config_line(
    config: RunConfig, method: Method, *, steps_per_epoch: int, command: Sequence[str], world: World | None = None
) -> dict[str, Any]:
    """What the run file begins with."""
    device = config.on()
    line = {
        "run": config.name,
        "time": now(),
        "command": list(command),
        "job": job(),
        "task": config.task,
        "model": config.model,
        "seed": config.seed,
        "method": {
            "key": key_of(method),
            "class": type(method).__name__,
            "text": config.method,
            "fields": _fields(method),
            **({} if (code := source(method)) is None else {"source": code}),
        },
        "recipe": _fields(config.recipe),
        "noise": {"kind": config.noise_kind, "rate": config.noise},
        "budget": {"kind": config.budget.kind, "limit": config.budget.limit},
        "device": device.type,
        "threads": config.threads,
        "steps_per_epoch": steps_per_epoch,
        "versions": {
            "lowland": metadata.version("lowland"),
            "torch": torch.__version__,
            "python": platform.python_version(),
        },
        "machine": {
            "device": device.type,
            "name": _machine(device),
            "threads": torch.get_num_threads(),
            **_tf32(device),
            "ranks": world.size if world else 1,
            "mesh": ",".join(f"{k}={v}" for k, v in world.sizes.items()) if world else "",
        },
    }
    loaded: dict[str, Any] = json.loads(json.dumps(line))  # as it will be read back, so that lines compare
    return loaded


def differences(recorded: Mapping[str, Any], asked: Mapping[str, Any]) -> list[tuple[str, Any, Any]]:
    """The fields of :data:`IDENTITY` in which two config lines differ: name, recorded value, asked value."""
    old, new = _flat(recorded), _flat(asked)
    return [(name, old.get(name), new.get(name)) for name in [*new, *(old.keys() - new.keys())]
            if old.get(name) != new.get(name)]  # fmt: skip


def refuse_other(recorded: Mapping[str, Any], asked: Mapping[str, Any], folder: Path) -> None:
    """Refuse to mix two different runs in one folder.

    Raises:
        StateError: The folder's run has another configuration.
    """
    for name, old, new in differences(recorded, asked):
        raise StateError(
            f"{name} must be {old!r}, as in the run in {folder}, but is {new!r}; go on with the recorded value, "
            "choose another --out, or remove that folder"
        )


def now() -> str:
    """The time, as run files write it."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def _flat(line: Mapping[str, Any]) -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name in IDENTITY:
        value = line.get(name)
        if name == "method" and isinstance(value, Mapping):
            # spelled "sam" or "sam:rho=0.05", it is the same method
            flat["method"] = value.get("key")
            flat |= {f"method.{k}": v for k, v in value.get("fields", {}).items()}
            flat["method's source"] = value.get("source")
        elif isinstance(value, Mapping):
            flat |= {f"{name}.{k}": v for k, v in value.items()}
        else:
            flat[name] = value
    return flat


def _fields(value: Method | Recipe) -> dict[str, Any]:
    """What was given to make it; a wrapper has a radius only to be a method, and none is given."""
    return {f.name: _plain(getattr(value, f.name)) for f in dataclasses.fields(value) if f.init}


def _plain(value: Any) -> Any:
    """A value as JSON holds it; a geometry by its name where it has its defaults, a method with all its fields."""
    if isinstance(value, Geometry):
        return next((name for name, kind in GEOMETRIES.items() if value == kind()), repr(value))
    if isinstance(value, Method):
        return f"{key_of(value)}({', '.join(f'{k}={v}' for k, v in _fields(value).items())})"
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)  # JSON has no number for it
    if value is None or isinstance(value, str | bool | int | float):
        return value
    return [_plain(v) for v in value] if isinstance(value, list | tuple) else repr(value)


def _file_safe(text: str) -> str:
    return re.sub(r"[^A-Za-z0-9._=+-]", "_", text)


def _tf32(device: torch.device) -> dict[str, bool]:
    """Where fp32 is computed in TF32, which rounds most of a small displacement away; nothing on a CPU."""
    if device.type != "cuda":
        return {}
    return {
        "tf32_matmul": torch.backends.cuda.matmul.allow_tf32,
        "tf32_convolutions": torch.backends.cudnn.allow_tf32,
    }


def _machine(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()
