"""Run files made up for tests of the reader and of the report."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

COSTS = {"plain": (1.0, 1.0), "sampa": (2.0, 1.0), "looksam": (1.2, 1.2)}
WriteRun = Callable[..., Path]


def lines_of(
    text: str = "plain",
    seed: int = 0,
    *,
    accuracy: float = 0.95,
    epochs: int = 8,
    finished: bool = True,
    seconds_per_step: float = 0.01,
    **config: Any,
) -> list[dict[str, Any]]:
    """The lines of one run as older versions wrote them, ending exactly at the accuracy given.

    ``text`` is a method and, behind ``@``, a recipe of its own, which is not looked into.
    """
    text, at, own = text.partition("@")
    key = text.partition(":")[0]
    total, sequential = COSTS.get(key, (2.0, 2.0))
    draw = random.Random(f"{text}{seed}")
    method = {
        "key": key,
        "class": key.upper(),
        "text": text,
        "fields": {} if key == "plain" else {"rho": 0.05},
    }
    head = (
        {
            "kind": "config",
            "run": f"digits-mlp-{text.replace(':', '_')}-seed{seed}",
            "time": f"2026-11-20T18:{seed:02d}:00+00:00",
            "task": "digits",
            "model": "mlp",
            "seed": seed,
            "method": method,
            "recipe": {"optimizer": "sgd", "lr": 0.1, "momentum": 0.9, "weight_decay": 5e-4, "epochs": epochs},
            "noise": {"kind": "symmetric", "rate": 0.0},
            "budget": {"kind": "steps", "limit": 22.0 * epochs},
            "parameters": 12345,
            "steps_per_epoch": 22,
            "versions": {"lowland": "0.1.0", "torch": "2.13.0", "python": "3.11.7"},
            "machine": {"device": "cpu", "name": "test machine", "threads": 2},
        }
        | ({"contestant": f"{text}@{own}"} if at else {})
        | config
    )
    found: list[dict[str, Any]] = [head]
    for epoch in range(1, epochs + 1):
        away = math.exp(-5 * epoch / epochs) - math.exp(-5)
        step = 22 * epoch
        found.append(
            {
                "kind": "epoch",
                "epoch": epoch,
                "step": step,
                "train_loss": 0.01 + 2 * away + 0.01 * draw.random(),
                "train_accuracy": None,
                "test_loss": 0.2 + away,
                "test_accuracy": accuracy - 0.6 * away + (0.004 * (draw.random() - 0.5) if epoch < epochs else 0),
                "lr": 0.1,
                "seconds": step * seconds_per_step * (1 + 0.02 * draw.random()),
                "gradients": step * total,
                "sequential": step * sequential,
                "peak_memory": 4 * 2**20,
            }
        )
    end = {
        "kind": "end",
        "epochs": epochs,
        "step": 22 * epochs,
        "test_accuracy": accuracy,
        "test_loss": 0.2,
        "best_test_accuracy": accuracy + 0.001,
        "seconds": 22 * epochs * seconds_per_step,
        "seconds_per_step": seconds_per_step,
        "gradients_per_step": total,
        "sequential_per_step": sequential,
        "peak_memory": (4 if key == "plain" else 5) * 2**20,
        "m_sharpness": 0.02 if key == "plain" else 0.0125,
        "weights_sha256": "0123456789abcdef" * 4,
    }
    return [*found, end] if finished else found


def modern(lines: list[dict[str, Any]], *metrics: dict[str, Any], select: str = "last") -> list[dict[str, Any]]:
    """The same lines as they are written today: values by the names of their metrics, the first one the headline.

    The headline takes the place of the accuracy, and the best epoch is the one before the last, 0.01 better than it.
    """
    name = metrics[0]["name"]
    found = [lines[0] | {"metrics": list(metrics), "select": select}]
    del found[0]["noise"]
    for line in lines[1:]:
        values = {"loss": line.pop("test_loss"), name: line.pop("test_accuracy")}
        line.pop("train_accuracy", None)
        line |= {"test": values, "validation": values}
        if line["kind"] == "end":
            del line["best_test_accuracy"]
            better = values | {name: values[name] + (0.01 if metrics[0].get("higher", True) else -0.01)}
            line["best"] = {"epoch": line["epochs"] - 1, "test": better, "validation": values}
        found.append(line)
    return found


def write_lines(folder: Path, lines: list[dict[str, Any]]) -> Path:
    """Write a run file into a new folder and return the folder."""
    folder.mkdir(parents=True)
    (folder / "run.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    return folder


@pytest.fixture
def write_run(tmp_path: Path) -> WriteRun:
    """Writes one run below ``tmp_path / "runs"`` and returns its folder; arguments as in ``lines_of``."""

    def write(text: str = "plain", seed: int = 0, *, folder: str | None = None, tail: str = "", **options: Any) -> Path:
        lines = lines_of(text, seed, **options)
        place = tmp_path / "runs" / (folder or f"{text.replace(':', '_')}-{seed}")
        place.mkdir(parents=True)
        (place / "run.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines) + tail, encoding="utf-8")
        return place

    return write


# Gain in points, its spread over seeds, and the time of a step: a comparison as it may be, with equal costs and knots.
FAMILY = {
    "sam": (2.3, 1.1, 2.13),
    "sampa": (2.6, 1.0, 2.91),
    "looksam:k=5,alpha=0.2": (4.1, 1.3, 1.73),
    "micro-sam": (1.9, 0.7, 6.71),
    "vsam": (-0.1, 1.1, 1.79),
    "arsam": (-0.1, 1.1, 1.65),
    "ausam": (8.5, 1.4, 2.13),
    "k-sam": (2.8, 0.9, 1.99),
    "esam": (8.6, 1.1, 2.40),
    "friendly-sam": (10.0, 1.3, 2.90),
    "stable-sam": (2.2, 1.0, 1.95),
    "adasam": (1.5, 0.4, 2.51),
    "asam": (2.9, 0.9, 2.08),
    "gsam": (2.8, 1.0, 2.28),
    "wsam": (23.3, 1.3, 2.04),
    "bisam": (2.8, 1.0, 3.36),
    "ae-sam": (1.8, 0.9, 1.54),
    "rst": (1.6, 0.7, 1.47),
    "async-sam": (1.0, 1.0, 2.50),
    "late:start=0.9,inner=looksam:k=5": (-0.4, 0.2, 1.30),
    "momentum-sam": (1.9, 0.6, 1.26),
    "sl-sam": (1.4, 0.5, 1.83),
}


def family(count: int, seeds: int = 5, base: float = 0.7056, **options: Any) -> list[list[dict[str, Any]]]:
    """The lines of runs of plain training and of the first ``count - 1`` methods of a family."""
    found = []
    draw = random.Random(count)
    start = [base + 0.02 * draw.uniform(-1, 1) for _ in range(seeds)]
    for text, (gain, spread, time) in ({"plain": (0.0, 0.0, 1.0)} | dict(list(FAMILY.items())[: count - 1])).items():
        for seed in range(seeds):
            accuracy = min(0.9999, start[seed] + (gain + spread * draw.uniform(-1.4, 1.4)) / 100)
            pace = 0.004 * time * draw.uniform(0.97, 1.03)
            fields = {"rho": 0.05, "geometry": "l2"} | ({"lam": 0.2} if text == "sampa" else {})
            method = {"key": text.partition(":")[0], "class": "", "text": text, "fields": fields}
            found.append(
                lines_of(
                    text,
                    seed,
                    accuracy=accuracy,
                    epochs=40,
                    seconds_per_step=pace,
                    method=method,
                    run=f"{text}-seed{seed}",
                    **options,
                )
            )
    return found


def changed(folder: Path, **fields: Any) -> Path:
    """Change fields of the first line of a run file."""
    file = folder if folder.is_file() else folder / "run.jsonl"
    first, *rest = file.read_text(encoding="utf-8").splitlines()
    line = json.loads(first)
    line.update({k: {**(line.get(k) or {}), **v} if isinstance(v, dict) else v for k, v in fields.items()})
    file.write_text("\n".join([json.dumps(line), *rest]) + "\n", encoding="utf-8")
    return folder


def forget(folder: Path) -> None:
    """Make the metric at the end what JSON has for a number that is none."""
    file = folder if folder.is_file() else folder / "run.jsonl"
    lines = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
    end = [line for line in lines if line["kind"] == "end"][-1]
    end.update({"test": {**end["test"], "accuracy": None}} if "test" in end else {"test_accuracy": None})
    file.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")


def lose(folder: Path) -> None:
    """Make the last epoch's loss what JSON has for a number that is none."""
    file = folder if folder.is_file() else folder / "run.jsonl"
    lines = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
    [line for line in lines if line["kind"] == "epoch"][-1]["train_loss"] = None
    file.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
