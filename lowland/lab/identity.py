"""The identity of a run: the config line of its run file, and the name of its folder."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import platform
import re
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from torch import nn

from lowland.core.errors import StateError
from lowland.core.geometry import Geometry
from lowland.lab import fingerprint
from lowland.lab.config import RunConfig
from lowland.lab.metric import LOSS
from lowland.methods import GEOMETRIES, key_of
from lowland.methods.base import Method
from lowland.parallel import World, job

IDENTITY = (
    "task", "model", "shapes", "seed", "recipe", "budget", "validation", "select", "patience", "method", "sources",
    "lowland",
)  # fmt: skip
"""The fields of a config line that decide the trajectory; two runs with equal fields are the same run.

Device, mesh, threads and folder do not belong to the identity. The method comes after the fields that its defaults
depend on, so that an error message names the cause of a difference first.
"""


def shapes(model: nn.Module) -> str:
    """A hash of the names and shapes of a model's parameters."""
    text = "\n".join(f"{name} {tuple(p.shape)}" for name, p in model.named_parameters())
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def config_line(
    config: RunConfig,
    method: Method,
    model: str,
    *,
    steps_per_epoch: int,
    command: Sequence[str],
    world: World | None = None,
) -> dict[str, Any]:
    """The config line: the first line of a run file.

    Args:
        config: The configuration of the run.
        method: The method, with all fields filled.
        model: The hash of the model's parameter names and shapes, from :func:`shapes`.
        steps_per_epoch: The number of batches in an epoch.
        command: The command line that started the run.
        world: The ranks that train together.
    """
    line = {
        "time": now(),
        "command": list(command),
        "job": job(),
        "contestant": config.label,
        "task": config.task_text,
        "model": config.model_text,
        "shapes": model,
        "metrics": [metric.described() for metric in config.task.metrics] or [LOSS],
        "seed": config.seed,
        "method": {
            "key": key_of(method),
            "class": type(method).__name__,
            "text": config.method_text,
            "fields": plain_fields(method),
        },
        "recipe": plain_fields(config.recipe),
        "budget": {"kind": config.budget.kind, "limit": config.budget.limit},
        "validation": config.validation,
        "select": config.select,
        "patience": config.patience,
        "sources": sources(config, method),
        "lowland": metadata.version("lowland"),
        "steps_per_epoch": steps_per_epoch,
        **({"trial": True} if config.trial else {}),
        **_circumstances(config, world),
    }
    # The conversion through JSON makes the line equal to a line that is read from a file.
    loaded: dict[str, Any] = json.loads(json.dumps(line))
    return {"run": name_of(loaded), **loaded}


def _circumstances(config: RunConfig, world: World | None) -> dict[str, Any]:
    """The device, the versions and the machine of a run."""
    device = config.on()
    return {
        "device": device.type,
        "threads": config.threads,
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


def name_of(line: Mapping[str, Any]) -> str:
    """The run folder's name: task, model, contestant and seed, then a hash of the identity fields."""
    hashed = hashlib.sha256(json.dumps(_flat(line), sort_keys=True).encode()).hexdigest()[:8]
    readable = "-".join(
        re.sub(r"[^A-Za-z0-9._=+@-]", "_", Path(part).name if "/" in part else part)
        for part in (line["task"], line["model"], line["contestant"])
    )
    return f"{readable[:150]}-seed{line['seed']}-{hashed}"


def differences(recorded: Mapping[str, Any], requested: Mapping[str, Any]) -> list[tuple[str, Any, Any]]:
    """The fields of :data:`IDENTITY` in which two config lines differ: name, recorded value, requested value."""
    old, new = _flat(recorded), _flat(requested)
    return [(name, old.get(name), new.get(name)) for name in [*new, *(old.keys() - new.keys())]
            if old.get(name) != new.get(name)]  # fmt: skip


def refuse_other(recorded: Mapping[str, Any], requested: Mapping[str, Any], folder: Path) -> None:
    """Refuse to mix two different runs in one folder.

    Raises:
        StateError: The folder's run has another configuration.
    """
    for name, old, new in differences(recorded, requested):
        raise StateError(
            f"{name} must be {old!r}, as in the run in {folder}, but is {new!r}; go on with the recorded value, "
            "choose another --out or --name, or remove that folder"
        )


def now() -> str:
    """The current time in UTC, in the format of run files."""
    return datetime.now(UTC).isoformat(timespec="milliseconds")


def plain_fields(value: Any) -> dict[str, Any]:
    """The constructor's fields of a dataclass as JSON values; this leaves out the derived radius of wrappers."""
    return {f.name: _plain(getattr(value, f.name)) for f in dataclasses.fields(value) if f.init}


def sources(config: RunConfig, method: Method | None = None) -> dict[str, str]:
    """Hashes of the source code of the user's own task, model and method."""
    _, model_factory = config.maker()
    hashes = {
        "task": fingerprint.of(config.task, "task"),
        "model": None if model_factory is None else fingerprint.of(model_factory, "model"),
        "method": None if method is None else fingerprint.of(method, "method"),
    }
    return {name: digest for name, digest in hashes.items() if digest is not None}


def _flat(line: Mapping[str, Any]) -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name in IDENTITY:
        value = line.get(name)
        if name == "method" and isinstance(value, Mapping):
            # "sam" and "sam:rho=0.05" are the same method, so the text does not count
            flat["method"] = value.get("key")
            flat |= {f"method.{k}": v for k, v in value.get("fields", {}).items()}
        elif isinstance(value, Mapping):
            flat |= {f"{name}.{k}": v for k, v in value.items()}
        else:
            flat[name] = value
    return flat


def _plain(value: Any) -> Any:
    """A value as JSON: a default geometry becomes its name, a method becomes its key with all fields."""
    if isinstance(value, Geometry):
        return next((name for name, kind in GEOMETRIES.items() if value == kind()), repr(value))
    if isinstance(value, Method):
        return f"{key_of(value)}({', '.join(f'{k}={v}' for k, v in plain_fields(value).items())})"
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)  # JSON has no infinity and no NaN
    if value is None or isinstance(value, str | bool | int | float):
        return value
    return [_plain(v) for v in value] if isinstance(value, list | tuple) else repr(value)


def _tf32(device: torch.device) -> dict[str, bool]:
    """Whether CUDA computes fp32 in TF32, which rounds small displacements away; empty on a CPU."""
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
    processors = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return processors[0] if processors else platform.processor() or platform.machine()
