"""Records of sweeps made up for tests of the reader and of the report."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

from lowland.runs.record import ACCURACY
from lowland.runs.sweep import ContestantRecord, ParameterRecord, SweepRecord, TrialRecord

RHO = ParameterRecord(name="rho", place="method", text="0.02..0.8:log", low=0.02, high=0.8, log=True)
LAM = ParameterRecord(name="lam", place="method", text="0.0..1.0", low=0.0, high=1.0)
OPTIMIZER = ParameterRecord(name="optimizer", place="recipe", text="sgd|adamw", choices=("sgd", "adamw"))


def trial(number: int, score: float | None = 0.9, outcome: Any = "finished", **values: str) -> TrialRecord:
    return TrialRecord(
        number=number, outcome=outcome, values=values, text=f"sampa:{','.join(f'{k}={v}' for k, v in values.items())}",
        task="digits", score=score if outcome == "finished" else None, scores=(score,), epochs=((1, 0.5),),
        runs=(f"run-{number}",),
    )  # fmt: skip


def contestant(*trials: TrialRecord, parameters: Any = (RHO, LAM), **more: Any) -> ContestantRecord:
    fields = {"text": "sampa:rho=0.02..0.8:log,lam=0.0..1.0", "study": "s", "total": len(trials), "importance": {}}
    return ContestantRecord(**fields | {"parameters": parameters, "trials": trials} | more)


def sweep(*contestants: ContestantRecord, **more: Any) -> SweepRecord:
    fields = {
        "time": "2026-11-27T10:00:00+00:00", "command": "lowland sweep --trials 4", "task": "digits", "model": "mlp",
        "metric": ACCURACY, "validation": 0.1, "select": "last", "seeds": (1000,), "sampler": "random search",
        "pruner": "none", "budget": {"kind": "steps", "limit": 30.0}, "comparison": ("lowland compare",),
    }  # fmt: skip
    return SweepRecord(**fields | {"contestants": contestants} | more)


def gridded(size: int = 4) -> ContestantRecord:
    """A grid whose best point is in its middle, with a pruned, a diverged and a far worse one."""
    rhos = [f"{0.02 * 40 ** (i / (size - 1)):.4g}" for i in range(size)]
    lams = [f"{i / (size - 1):.4g}" for i in range(size)]
    trials = []
    for n in range(size * size):
        i, j = n // size, n % size
        values = {"rho": rhos[i], "lam": lams[j]}
        outcome = {0: "pruned", size * size - 1: "diverged"}.get(n, "finished")
        score = 0.2 if n == size - 1 else 0.97 - 0.004 * ((i - 1) ** 2 + (j - 1) ** 2)
        trials.append(trial(n, score, outcome, **values))
    points = (replace(RHO, choices=tuple(rhos)), replace(LAM, choices=tuple(lams)))
    return contestant(*trials, parameters=points, importance={"rho": 0.7, "lam": 0.3})


def scattered(count: int = 20) -> ContestantRecord:
    """Trials at many places, some of them pruned or diverged, with an optimizer that is a choice."""
    trials = []
    for n in range(count):
        share = (n * 0.618) % 1
        rho, lam = 0.02 * 40**share, (n * 0.381) % 1
        outcome = "pruned" if n % 7 == 3 else "diverged" if n % 7 == 5 else "finished"
        score = 0.97 - 0.05 * (math.log(rho / 0.2) ** 2) / 5 - 0.03 * (lam - 0.3) ** 2
        values = {"rho": f"{rho:.4g}", "lam": f"{lam:.4g}", "optimizer": ("sgd", "adamw")[n % 2]}
        trials.append(trial(n, score, outcome, **values))
    return contestant(*trials, parameters=(RHO, LAM, OPTIMIZER), importance={"rho": 0.6, "lam": 0.3, "optimizer": 0.1})
