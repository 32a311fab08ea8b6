"""The search of one contestant: an Optuna study with a fixed number of trials, over all processes and restarts."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from typing import Any, cast

import optuna
from optuna.trial import FrozenTrial, TrialState

from lowland.lab.studies.sweeps import samplers
from lowland.lab.studies.sweeps.locks import Locks
from lowland.lab.studies.sweeps.ranges import Range
from lowland.lab.studies.sweeps.samplers import SURPLUS, counted
from lowland.lab.studies.sweeps.settings import SweepSettings
from lowland.lab.studies.sweeps.template import Parameter, Template
from lowland.runs.sweep import ContestantRecord, Outcome, ParameterRecord, TrialRecord

UNOWNED = 60.0  # seconds after which a trial without an owner has lost its process
ESTIMATED = 8  # finished trials from which on importances are estimated


class Contest:
    """One contestant with its Optuna study.

    Args:
        task: The task, with its ranges.
        contestant: The contestant, with its ranges.
        name: The name of the study, which covers everything that decides its trials.
        total: The number of trials.
        settings: How the sweep searches.
        storage: The storage of the studies.
        locks: The locks of the folder of the runs.
        higher: Whether higher values of the metric are better.
    """

    def __init__(
        self,
        task: Template,
        contestant: Template,
        *,
        name: str,
        total: int,
        settings: SweepSettings,
        storage: Any,
        locks: Locks,
        higher: bool,
    ) -> None:
        self.task, self.contestant, self.name = task, contestant, name
        self.parameters: tuple[Parameter, ...] = (*task.parameters, *contestant.parameters)
        self._points = (settings.points or 2) if settings.sampler == "grid" else None
        self.total = total
        self._locks, self._place, self._shared = locks, locks.token(), settings.storage is not None
        key = f"{settings.sampler_seed} {task} {contestant}"
        with locks.hold("studies"):  # two processes must not make the study at once
            self.study = optuna.create_study(
                study_name=name,
                storage=storage,
                direction="maximize" if higher else "minimize",
                sampler=samplers.make_sampler(settings.sampler, self.parameters, self._points, key),
                pruner=samplers.make_pruner(settings.pruner),
                load_if_exists=True,
            )

    # Trials

    def begun(self) -> int:
        """The number of trials that have begun."""
        return len(counted(self.study))

    def left_behind(self) -> optuna.Trial | None:
        """A trial whose process is gone, to go on with; this process has its lock then."""
        for frozen in counted(self.study):
            if frozen.state == TrialState.RUNNING and self._is_here(frozen) and self._locks.take(self._lock(frozen)):
                if self._now(frozen).state == TrialState.RUNNING:  # not ended just before its lock was released
                    return self._owned(optuna.trial.Trial(self.study, frozen._trial_id))
                self._locks.release(self._lock(frozen))
        return None

    def next(self) -> optuna.Trial | None:
        """A new trial, with its lock; None if all trials have begun."""
        while self.begun() < self.total:
            trial = self.study.ask()
            if not self._locks.take(self._lock(trial)):
                continue  # another process took it for a trial whose process is gone
            if samplers.index_of(self.study, trial.number) < self.total:
                return self._owned(trial)
            trial.set_user_attr(SURPLUS, True)  # another process began the last trial at the same time
            self.study.tell(trial, state=TrialState.FAIL)
            self.release(trial)
        return None

    def values(self, trial: optuna.Trial) -> dict[str, str]:
        """The values of a trial as text, by the names of the fields; drawn at the first call."""
        drawn = {each.name: samplers.draw(trial, each.name, each.values, self._points) for each in self.parameters}
        trial.set_user_attr("values", drawn)
        return drawn

    def reported(self, trial: optuna.Trial) -> set[int]:
        """The epochs whose metric the pruner has."""
        return {*self.study._storage.get_trial(trial._trial_id).intermediate_values}

    def end(self, trial: optuna.Trial, outcome: Outcome, score: float | None = None, **more: Any) -> None:
        """Record the outcome of a trial, and release its lock."""
        for name, value in {"outcome": outcome, **more}.items():
            trial.set_user_attr(name, value)
        if outcome == "finished":
            self.study.tell(trial, score)
        else:
            # The sampler learns from pruned trials, not from failed ones, that a trial that diverged is a bad one.
            state = TrialState.PRUNED if outcome in ("pruned", "diverged") else TrialState.FAIL
            self.study.tell(trial, state=state)
        self.release(trial)

    def release(self, trial: optuna.Trial) -> None:
        """Release the lock of a trial."""
        self._locks.release(self._lock(trial))

    def _lock(self, trial: optuna.Trial | FrozenTrial) -> str:
        return f"{self.name} {trial.number}"

    def _owned(self, trial: optuna.Trial) -> optuna.Trial:
        trial.set_user_attr("place", self._place)
        return trial

    def _is_here(self, trial: FrozenTrial) -> bool:
        """Whether a trial is one of the processes that share this folder, so that its lock tells whether one has it."""
        if "place" in trial.user_attrs:
            return bool(trial.user_attrs["place"] == self._place)
        started = trial.datetime_start
        return not self._shared or (started is not None and time.time() - started.timestamp() > UNOWNED)

    def _now(self, trial: FrozenTrial) -> FrozenTrial:
        return self.study._storage.get_trial(trial._trial_id)

    # Records

    def record(self, *, importance: bool = False) -> ContestantRecord:
        """The record of all trials, also of those of other processes.

        Args:
            importance: Estimate the importance of each field, which takes a moment.
        """
        return ContestantRecord(
            text=self.contestant.text,
            study=self.name,
            total=self.total,
            parameters=tuple(self._parameter(each) for each in self.parameters),
            trials=tuple(self._trial(index, trial) for index, trial in enumerate(counted(self.study))),
            importance=self._importance() if importance else {},
        )

    def _parameter(self, parameter: Parameter) -> ParameterRecord:
        values = parameter.values
        is_range = isinstance(values, Range)
        return ParameterRecord(
            name=parameter.name,
            place=parameter.place,
            text=values.text,
            low=values.low if isinstance(values, Range) else None,
            high=values.high if isinstance(values, Range) else None,
            log=isinstance(values, Range) and values.log,
            choices=() if is_range and self._points is None else tuple(values.points(self._points or 2)),
        )

    def _trial(self, index: int, trial: FrozenTrial) -> TrialRecord:
        known = trial.user_attrs
        values: Mapping[str, str] = known.get("values", {})
        complete = len(values) == len(self.parameters)
        outcome = known.get("outcome", "failed") if trial.state.is_finished() else "running"
        return TrialRecord(
            number=index,
            outcome=cast(Outcome, outcome),
            values=values,
            text=self.contestant.fill(values) if complete else self.contestant.text,
            task=self.task.fill(values) if complete else self.task.text,
            score=trial.value if trial.state == TrialState.COMPLETE else None,
            scores=tuple(known.get("scores", ())),
            loss=known.get("loss"),
            epochs=tuple((e, v) for e, v in sorted(trial.intermediate_values.items()) if math.isfinite(v)),
            runs=tuple(known.get("runs", ())),
            message=known.get("message", ""),
        )

    def _importance(self) -> dict[str, float]:
        varied = [each.name for each in self.parameters]
        complete = [t for t in counted(self.study) if t.state == TrialState.COMPLETE]
        if len(varied) < 2 or len(complete) < ESTIMATED or len({trial.value for trial in complete}) < 2:
            return {}
        try:
            evaluator = optuna.importance.FanovaImportanceEvaluator(seed=0)
        except ImportError:  # scikit-learn is not installed
            return {}
        shares = optuna.importance.get_param_importances(self.study, evaluator=evaluator, params=varied)
        return {name: float(share) for name, share in shares.items() if math.isfinite(share)}
