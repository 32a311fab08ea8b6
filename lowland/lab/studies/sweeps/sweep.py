"""A sweep: a study that searches the fields of each contestant for the best validation metric."""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

from lowland.core.errors import ArgumentError, ParameterError, UsageError
from lowland.lab.config import RunConfig
from lowland.lab.identity import now
from lowland.lab.metric import LOSS
from lowland.lab.studies.compare import check_method, run_name
from lowland.lab.studies.sweeps import samplers
from lowland.lab.studies.sweeps.contest import Contest
from lowland.lab.studies.sweeps.locks import Locks
from lowland.lab.studies.sweeps.plan import Plan, study_name
from lowland.parallel import world
from lowland.runs import sweep as records
from lowland.runs.record import MetricRecord, RunRecord, Values
from lowland.runs.sweep import SweepRecord, TrialRecord

REFUSALS = (ArgumentError, ParameterError, UsageError)


class Point(NamedTuple):
    """What the first rank tells the others about the next run."""

    contest: int
    number: int
    values: dict[str, str]
    seed: int


@dataclass
class _Current:
    """The trial in progress on the first rank."""

    contest: int
    trial: Any
    values: dict[str, str]
    seeds: list[int]  # that are not trained yet
    scores: list[float | None] = field(default_factory=list)
    losses: list[float] = field(default_factory=list)
    runs: list[str] = field(default_factory=list)
    reported: set[int] = field(default_factory=set)  # epochs that the pruner has seen


class Sweep:
    """A study that asks for the runs of trials. All processes with the same plan and folder share the trials.

    On several ranks the first rank decides, and the others receive its decision.

    Args:
        plan: What is searched; see :func:`~lowland.lab.studies.sweeps.plan.check`.
        out: The folder of the runs.
        text: The command line, for the record.
        comparison: Makes the command lines that compare the best trials from the record.
        on_trial: Called on the first rank after each trial with the record of the sweep, the contestant's index, and
            the record of the trial.
    """

    def __init__(
        self,
        plan: Plan,
        out: Path,
        *,
        text: str = "",
        comparison: Callable[[SweepRecord], Sequence[str]] = lambda record: (),
        on_trial: Callable[[SweepRecord, int, TrialRecord], None] = lambda record, contest, trial: None,
    ) -> None:
        self.plan, self.out, self.text, self.on_trial = plan, out, text, on_trial
        self._comparison = comparison
        self._names = [study_name(plan, contestant) for contestant in plan.contestants]
        self._shared = plan.base(plan.task.fill({p.name: p.values.ends[0] for p in plan.task.parameters}))
        metrics = self._shared.task.metrics
        described: dict[str, Any] = metrics[0].described() if metrics else LOSS
        self._metric = MetricRecord(**described)
        self._current: _Current | None = None
        with self._world() as ranks:
            self._locks = Locks(out) if ranks.first else None
            self.contests = self._make_contests(self._locks) if self._locks is not None else []
        digest = hashlib.sha256(json.dumps(self._names).encode()).hexdigest()[:8]
        task, model = Path(self._shared.task_text).name, Path(self._shared.model_text).name
        readable = re.sub(r"[^A-Za-z0-9._=+-]", "_", f"{task}-{model}")[:120]
        self.path = out / f"sweep-{readable}-{digest}.json"

    @property
    def is_first(self) -> bool:
        """Whether this is the first rank, which decides and writes."""
        return self._locks is not None

    def close(self) -> None:
        """Release all locks, so that another process can go on with an unfinished trial."""
        if self._locks is not None:
            self._locks.close()

    # The study

    def ask(self) -> RunConfig | None:
        """See :meth:`lowland.lab.Study.ask`."""
        while True:
            with self._world() as ranks:
                point: Point | None = ranks.broadcast(self._next() if ranks.first else None)
            if point is None:
                return None
            try:
                config = self.plan.config(self.plan.contestants[point.contest], point.values, point.seed)
                if point.seed == self.plan.settings.first_seed:
                    check_method(config)
                name = run_name(config)
            except REFUSALS as error:
                if self._current is not None:
                    self._end("refused", message=str(error))
                continue
            if self._current is not None and self._locks is not None:
                self._locks.take(name, wait=True)  # another process may train the very same run
                self._current.runs.append(name)
            return config

    def tell(self, run: RunConfig, record: RunRecord) -> None:
        """See :meth:`lowland.lab.Study.tell`."""
        if self._current is None or self._locks is None:
            return
        current = self._current
        self._locks.release(current.runs[-1])
        validation = self._validation(record)
        value, loss = validation.get(self._metric.name), validation.get("loss")
        current.scores.append(value)
        current.losses.append(math.nan if loss is None else loss)
        if not record.finished:
            self._end("pruned")
        elif record.end is not None and record.end.diverged:
            self._end("diverged")
        elif value is None:
            self._end("failed", message=f"the validation {self._metric.name} is not finite")
        elif not current.seeds:
            known = [score for score in current.scores if score is not None]
            self._end("finished", sum(known) / len(known))

    def watch(self, line: dict[str, Any]) -> bool:
        """Report an epoch to the pruner; it sees the first seed only.

        Returns:
            Whether the run is pruned.
        """
        current = self._current
        value = (line.get("validation") or {}).get(self._metric.name)
        if current is None or current.scores or value is None:
            return False
        epoch = int(line["epoch"])
        if epoch not in current.reported:  # a resumed run repeats epochs
            current.reported.add(epoch)
            current.trial.report(value, epoch)
        if current.trial.should_prune():
            current.trial.set_user_attr("stopped", epoch)  # so that a kill from here on changes nothing
            return True
        return False

    # On the first rank

    def _next(self) -> Point | None:
        """The next run: the next seed of the trial in progress, a trial that was left behind, or a new trial."""
        while self._current is None or not self._current.seeds:
            claimed = self._claim()
            if claimed is None:
                return None
            index, trial = claimed
            values = self.contests[index].values(trial)
            reported = self.contests[index].reported(trial)
            self._current = _Current(index, trial, values, list(self.plan.settings.all_seeds), reported=reported)
            if "stopped" in trial.user_attrs:
                self._end("pruned")
        current = self._current
        return Point(current.contest, current.trial.number, current.values, current.seeds.pop(0))

    def _claim(self) -> tuple[int, Any] | None:
        for index, contest in enumerate(self.contests):
            trial = contest.left_behind()
            if trial is not None:
                return index, trial
        # The contestants take turns, so that an interruption affects all alike.
        begun = [contest.begun() for contest in self.contests]
        for index in sorted(range(len(begun)), key=lambda i: (begun[i], i)):
            trial = self.contests[index].next()
            if trial is not None:
                return index, trial
        return None

    def _validation(self, record: RunRecord) -> Values:
        """Loss and metrics of a run on the validation part, at the epoch that a comparison would use."""
        if record.end is None or record.end.diverged or not record.epochs:
            return {}
        if self._shared.select == "best":
            return {} if record.end.best is None else record.end.best.validation
        return record.epochs[-1].validation

    def _end(self, outcome: records.Outcome, score: float | None = None, *, message: str = "") -> None:
        current, self._current = self._current, None
        assert current is not None
        contest = self.contests[current.contest]
        scores = [s if s is not None and math.isfinite(s) else None for s in current.scores]
        loss = sum(current.losses) / len(current.losses) if outcome == "finished" else math.nan
        known = loss if math.isfinite(loss) else None  # JSON has no NaN
        contest.end(current.trial, outcome, score, scores=scores, loss=known, runs=current.runs, message=message)
        record = self.write()
        trials = record.contestants[current.contest].trials
        self.on_trial(record, current.contest, trials[samplers.index_of(contest.study, current.trial.number)])

    # Records

    def write(self, *, importance: bool = False) -> SweepRecord:
        """Write the record of all trials so far, also of those of other processes, and return it."""
        assert self._locks is not None
        with self._locks.hold("record"):  # an older record must not replace a newer one
            record = self.record(importance=importance)
            records.write(record, self.path)
        return record

    def record(self, *, importance: bool = False) -> SweepRecord:
        """The record of all trials so far."""
        base, settings = self._shared, self.plan.settings
        seed = "" if settings.sampler == "grid" else f", seed {settings.sampler_seed}"
        made = SweepRecord(
            time=now(),
            command=self.text,
            task=self.plan.task.text,
            model=base.model_text,
            metric=self._metric,
            validation=base.validation,
            select=base.select,
            seeds=settings.all_seeds,
            sampler=f"{samplers.SAMPLERS[settings.sampler]}{seed}",
            pruner=samplers.PRUNERS[settings.pruner],
            budget={"kind": base.budget.kind, "limit": base.budget.limit},
            contestants=tuple(contest.record(importance=importance) for contest in self.contests),
        )
        return replace(made, comparison=tuple(self._comparison(made)))

    def _make_contests(self, locks: Locks) -> list[Contest]:
        storage = samplers.open_storage(self.plan.settings.storage, locks)
        return [
            Contest(
                self.plan.task,
                contestant,
                name=name,
                total=self.plan.total(contestant),
                settings=self.plan.settings,
                storage=storage,
                locks=locks,
                higher=self._metric.higher,
            )
            for contestant, name in zip(self.plan.contestants, self._names, strict=True)
        ]

    def _world(self) -> Any:
        return world(self._shared.mesh, self._shared.device)
