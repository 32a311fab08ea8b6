from __future__ import annotations

import json
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import optuna
import pytest

from lowland import lab
from lowland.core.errors import ArgumentError, MissingExtraError
from lowland.lab.studies.sweeps import contest, door
from lowland.runs import reader
from lowland.runs.sweep import SweepRecord, TrialRecord, read

TASK = "pulled.py:Pulled"
RATES = "plain@lr=0.001|0.3"


def swept(methods: list[str], task: str = TASK, out: str = "runs", **options: Any) -> SweepRecord:
    settings = {n: options.pop(n) for n in [*options] if n in vars(lab.SweepSettings())}
    result = lab.sweep(task, methods, settings=lab.SweepSettings(**settings), out=out, page=False, **options)
    assert result.record is not None
    assert read(result.file) == result.record
    return result.record


def grid(methods: list[str], task: str = TASK, **options: Any) -> SweepRecord:
    return swept(methods, task, sampler="grid", **options)


def best(record: SweepRecord) -> TrialRecord:
    return record.winners()[0][1]


def test_the_validation_part_alone_chooses(place: Path) -> None:
    record = grid([RATES])
    slow, fast = record.contestants[0].trials
    tests = [reader.read(f"runs/{trial.runs[0]}").end.test["loss"] for trial in (slow, fast)]  # type: ignore[union-attr]
    assert tests[0] < tests[1]  # the test part would choose the other one
    assert best(record) == fast
    assert all(reader.read(f"runs/{trial.runs[0]}").trial for trial in (slow, fast))  # also without a command line
    # By hand: a step moves the weight by 2 lr (1 - w), so after 12 steps 1 - w is (1 - 2 lr)^12.
    assert [slow.score, fast.score] == pytest.approx([(1 - 0.002) ** 24, 0.4**24], rel=1e-4, abs=1e-11)
    assert record.comparison == (f"lab.compare('{TASK}', ['plain@lr=0.3'], seeds=5)",)


@pytest.mark.parametrize(("task", "metric", "sign"), [("Gap", "gap", 1), ("Nearness", "nearness", -1)])
def test_the_metric_says_which_direction_is_better(place: Path, task: str, metric: str, sign: int) -> None:
    record = grid([RATES], f"pulled.py:{task}")
    assert record.metric.name == metric
    assert best(record).values == {"lr": "0.3"}
    assert best(record).score == pytest.approx(sign * 0.4**12, abs=1e-6)


def test_a_field_of_the_task(place: Path) -> None:
    record = grid(["plain@lr=0.1|0.2"], "pulled.py:Pulled:to=1.0|2.0")
    trials = record.contestants[0].trials
    assert [trial.task for trial in trials] == [f"{TASK}:to={to}" for to in ("1.0", "1.0", "2.0", "2.0")]
    assert [trial.values["lr"] for trial in trials] == ["0.1", "0.2"] * 2
    assert best(record).values == {"task.to": "1.0", "lr": "0.2"}


@pytest.mark.slow
def test_the_same_command_gives_the_same_trials(place: Path) -> None:
    methods = ["sam:rho=0.01..0.1:log@lr=0.01..0.2:log,batch_size=8|16"]
    one, two = (swept(methods, out=out, trials=12) for out in ("one", "two"))
    assert one.contestants == two.contestants
    other = swept(methods, out="three", trials=12, sampler_seed=1)
    assert one.contestants[0].trials[0].values != other.contestants[0].trials[0].values
    first = [trial.values for trial in one.contestants[0].trials]
    assert len({json.dumps(values) for values in first}) == 12
    assert all(0.01 <= float(values["rho"]) <= 0.1 and values["batch_size"] in ("8", "16") for values in first)


@pytest.mark.slow
def test_more_trials_go_on_where_fewer_have_ended(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    methods = ["plain@lr=0.01..0.3:log", "plain@momentum=0.1..0.9"]
    few = swept(methods, trials=3)
    trained = []
    real = door.conduct
    monkeypatch.setattr(door, "conduct", lambda *a, **k: trained.extend(real(*a, **k)))
    more = swept(methods, trials=12)
    assert len(trained) == 2 * 9
    for before, after in zip(few.contestants, more.contestants, strict=True):
        assert after.trials[:3] == before.trials
    assert more.contestants == swept(methods, trials=12, out="at_once").contestants
    trained.clear()
    assert swept(methods, trials=12).contestants == more.contestants
    assert trained == []


def test_every_contestant_gets_as_many_trials_and_they_take_turns(place: Path, capsys: Any) -> None:
    record = swept(["plain@lr=0.01..0.3:log", "sam:rho=0.01..0.1"], trials=2)
    assert [len(each.trials) for each in record.contestants] == [2, 2]
    lines = capsys.readouterr().err.splitlines()
    assert [line.split(" of ")[1].partition("@")[0].partition(":")[0] for line in lines] == ["plain", "sam"] * 2


def test_a_trial_that_diverges_is_recorded_and_never_the_best(place: Path) -> None:
    for task in ("Gap", "Nearness"):
        record = grid(["plain@lr=1000.0|0.1"], f"pulled.py:{task}", recipe=long())
        diverged, good = record.contestants[0].trials
        assert (diverged.outcome, diverged.score, diverged.loss) == ("diverged", None, None)
        assert best(record) == good
    record = grid(["plain@lr=1000.0|2000.0"], recipe=long())
    assert record.winners() == []
    assert [trial.outcome for trial in record.contestants[0].trials] == ["diverged"] * 2
    assert record.comparison == ()


def long() -> lab.Recipe:
    recipe = lab.Recipe(lr=0.1, momentum=0.0, nesterov=False, weight_decay=0.0, schedule="constant", warmup=0.0)
    return recipe.replace(epochs=10, batch_size=8)


@pytest.mark.slow
def test_pruning_ends_bad_trials_and_shows_no_finished_run(place: Path) -> None:
    rates = "plain@lr=0.2|0.21|0.22|0.23|0.24|0.001|0.25|0.002"
    record = grid([rates], pruner="median")
    outcomes = [trial.outcome for trial in record.contestants[0].trials]
    assert outcomes == ["finished"] * 5 + ["pruned", "finished", "pruned"]
    for trial in record.contestants[0].trials:
        run = reader.read(f"runs/{trial.runs[0]}")
        assert run.finished == (trial.outcome == "finished")
        assert run.pruned == (1 if trial.outcome == "pruned" else None)
        assert [epoch for epoch, _ in trial.epochs] == ([1] if trial.outcome == "pruned" else [1, 2, 3])
    assert best(record).values == {"lr": "0.25"}
    assert grid([rates], pruner="median").contestants == record.contestants
    with_all = grid([rates], out="all")
    assert [trial.outcome for trial in with_all.contestants[0].trials] == ["finished"] * 8


def test_a_pruned_run_can_be_resumed_to_the_end_of_a_run_that_never_was(place: Path) -> None:
    task = lab.load(TASK)
    config = lab.RunConfig(
        task=task, model="default", method="plain", seed=0, recipe=task.recipe("default"), budget=lab.Budget(limit=12)
    )
    pruned = lab.train(config, place / "a", watch=lambda line: line["epoch"] == 2)
    assert (pruned["kind"], pruned["epoch"]) == ("pruned", 2)
    resumed = lab.train(config, place / "a", resume=True)
    assert resumed["weights_sha256"] == lab.train(config, place / "b")["weights_sha256"]
    assert reader.read(place / "a").pruned is None
    at_the_end = lab.train(config, place / "c", watch=lambda line: line["epoch"] == 3)
    assert at_the_end["kind"] == "end"


@pytest.mark.slow
def test_hyperband_prunes_and_counts_all_trials(place: Path) -> None:
    record = swept(["plain@lr=0.0001..0.3:log"], trials=16, pruner="hyperband", recipe=long(), sampler="random")
    outcomes = [trial.outcome for trial in record.contestants[0].trials]
    assert len(outcomes) == 16
    assert set(outcomes) == {"finished", "pruned"}
    assert best(record).score == min(trial.score for trial in record.contestants[0].finished())  # type: ignore[type-var]


@pytest.mark.slow
def test_a_trial_over_seeds_is_their_mean(place: Path) -> None:
    record = swept(["sam:rho=0.05|0.1"], "digits", sampler="grid", seeds=3, validation=0.1, recipe=digits())
    for trial in record.contestants[0].trials:
        runs = [reader.read(f"runs/{name}") for name in trial.runs]
        assert [run.seed for run in runs] == [1000, 1001, 1002]
        values = [run.epochs[-1].validation["accuracy"] for run in runs]
        assert list(trial.scores) == values
        assert trial.score == pytest.approx(sum(v for v in values if v is not None) / 3)
        losses = [run.epochs[-1].validation["loss"] for run in runs]
        assert trial.loss == pytest.approx(sum(v for v in losses if v is not None) / 3)
    assert record.seeds == (1000, 1001, 1002)


def digits() -> lab.Recipe:
    return lab.Recipe(lr=0.1, epochs=1, batch_size=128)


def test_with_select_best_the_best_epoch_counts(place: Path) -> None:
    record = grid(["plain@lr=0.9|0.001"], recipe=long(), select="best")  # 0.9 jumps over the place and back
    for trial in record.contestants[0].trials:
        run = reader.read(f"runs/{trial.runs[0]}")
        assert trial.score == min(epoch.validation["loss"] for epoch in run.epochs)  # type: ignore[type-var]
        assert trial.loss == trial.score


def test_a_point_that_the_method_refuses_ends_its_trial_only(place: Path) -> None:
    record = grid(["momentum-sam:rho=0.1|0.2@momentum=0.0|0.5"])
    trials = record.contestants[0].trials
    assert [trial.outcome for trial in trials] == ["refused", "finished"] * 2
    assert "momentum must be > 0" in trials[0].message
    assert trials[0].runs == ()


def test_equal_points_train_once(place: Path) -> None:
    record = swept(["plain@lr=0.1|0.2"], trials=8, sampler="random")
    trials = record.contestants[0].trials
    assert record.contestants[0].different() == 2
    assert len({trial.runs for trial in trials}) == 2
    assert len([*Path("runs").glob("*/run.jsonl")]) == 2
    for trial in trials:
        assert trial.score == next(t.score for t in trials if t.values == trial.values)


@pytest.mark.slow
def test_a_database_keeps_the_trials(place: Path) -> None:
    url = f"sqlite:///{place}/trials.db"
    first = swept(["plain@lr=0.01..0.3:log"], trials=3, storage=url)
    assert not Path("runs/sweeps.journal").exists()
    assert swept(["plain@lr=0.01..0.3:log"], trials=3, storage=url).contestants == first.contestants
    (study,) = optuna.get_all_study_summaries(url)
    assert study.n_trials == 3


@pytest.mark.slow
def test_a_trial_of_a_process_elsewhere_is_left_to_it(place: Path) -> None:
    """The locks of another folder are not seen here, so a running trial of its processes is theirs."""
    url = f"sqlite:///{place}/trials.db"
    record = swept(["plain@lr=0.01..0.3:log"], trials=1, storage=url, out="here")
    study = optuna.load_study(study_name=record.contestants[0].study, storage=url)
    other = study.ask()
    other.set_user_attr("place", "another folder")
    record = swept(["plain@lr=0.01..0.3:log"], trials=3, storage=url, out="here")
    assert [trial.outcome for trial in record.contestants[0].trials] == ["finished", "running", "finished"]
    assert not record.complete()


def test_a_surplus_trial_does_not_count(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two processes that begin the last trial at once: the later one gives its trial up."""
    methods = ["plain@lr=0.01..0.3:log"]
    swept(methods, trials=2)
    real = contest.Contest.begun
    answers = iter([1])  # what a process reads before another begins the last trial
    with monkeypatch.context() as patch:
        patch.setattr(contest.Contest, "begun", lambda self: next(answers, None) or real(self))
        record = swept(methods, trials=2)
    assert [trial.outcome for trial in record.contestants[0].trials] == ["finished"] * 2
    more = swept(methods, trials=4)
    assert more.contestants == swept(methods, trials=4, out="at_once").contestants


@pytest.mark.slow
def test_an_incomplete_line_of_the_journal_is_removed(place: Path) -> None:
    swept(["plain@lr=0.01..0.3:log"], trials=2)
    with Path("runs/sweeps.journal").open("ab") as journal:
        journal.write(b'{"op_code": 4, "tri')  # as a full disk leaves it
    record = swept(["plain@lr=0.01..0.3:log"], trials=4)
    assert record.contestants == swept(["plain@lr=0.01..0.3:log"], trials=4, out="whole").contestants


def test_a_metric_that_is_not_finite_is_no_score(place: Path) -> None:
    record = grid(["plain@lr=0.1|0.2"], "pulled.py:Lost")
    assert [trial.outcome for trial in record.contestants[0].trials] == ["failed"] * 2
    assert record.contestants[0].trials[0].message == "the validation lost is not finite"
    assert record.winners() == []


def test_a_user_s_own_optuna_is_left_as_it_was(place: Path) -> None:
    before = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.DEBUG)
    swept([RATES], trials=1)
    assert optuna.logging.get_verbosity() == optuna.logging.DEBUG
    optuna.logging.set_verbosity(before)


@pytest.mark.parametrize(("methods", "options", "rule"), [
    ([], {}, "methods must name at least one method"),
    (["plain"], {}, "every method of a sweep must have a range, so that all are tuned alike, but 'plain' has none"),
    ([RATES, RATES], {}, "methods must differ, but plain@lr="),
    ([RATES], {"task": "pulled.py:Unheld"}, "a sweep needs a validation part, because the test part chooses nothing"),
    ([RATES], {"trials": 0}, "trials must be an integer >= 1, but is 0"),
    ([RATES], {"seeds": 0}, "seeds must be an integer >= 1"),
    ([RATES], {"first_seed": 3}, "first_seed must be an integer >= 5, but is 3; the comparison that follows uses"),
    ([RATES], {"sampler": "tp"}, "sampler must be"),
    ([RATES], {"pruner": "mean"}, "pruner must be"),
    ([RATES], {"points": 5}, "grid needs the sampler grid, but the sampler is tpe"),
    (["plain@lr=0.1..0.2"], {"sampler": "grid"}, "a grid needs the number of points in each range"),
    ([RATES], {"sampler": "grid", "trials": 3}, "trials must be the number of points of the grid, 2, but is 3"),
    ([RATES], {"storage": "trials.db"}, "storage must be a URL"),
    ([RATES], {"storage": "sqlite:////no/such/folder/x.db"}, "storage must be a database that can be opened"),
    ([RATES], {"budget": "seconds"}, "limit must be given for a sweep whose budget is in seconds"),
    (["sampa:lam=0.5..2.0"], {}, r"lam must be in \[0, 1\], but is 2"),
    (["sam:rho=-0.5..0.5"], {}, "rho must be a number >= 0, but is -0.5"),
    (["sam:roh=0.1..0.5"], {}, "did you mean 'rho'"),
    (["plain@lrs=0.1..0.5"], {}, "unknown recipe field 'lrs'"),
    (["plain@optimizer=sgd|lion"], {}, "optimizer must be"),
])  # fmt: skip
def test_refused_before_anything_is_written(place: Path, methods: Any, options: Any, rule: str) -> None:
    with pytest.raises(ArgumentError, match=rule):
        swept(methods, **options)
    assert not [path for path in Path("runs").glob("*") if path.name != ".sweeps.lock"]


def test_a_range_is_good_if_other_fields_can_make_it_so(place: Path) -> None:
    Path("own.py").write_text(
        "from dataclasses import dataclass\nimport lowland\nfrom lowland.core.errors import ArgumentError\n"
        "@dataclass(frozen=True, kw_only=True)\nclass Own(lowland.SAM):\n    low: float = 0.0\n    high: float = 1.0\n"
        "    def __post_init__(self):\n        super().__post_init__()\n        if self.low > self.high:\n"
        "            raise ArgumentError('low must be <= high')\n"
    )
    record = swept(["own.py:Own:low=0.0|0.6,high=0.5|0.9"], sampler="grid")
    assert [trial.outcome for trial in record.contestants[0].trials] == ["finished", "finished", "refused", "finished"]


@pytest.mark.slow
def test_optuna_may_be_missing() -> None:
    program = (
        "import sys; sys.modules['optuna'] = None\nfrom lowland import lab\n"
        "try:\n    lab.sweep\nexcept ImportError as error:\n    print(type(error).__name__, error)"
    )
    ran = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert ran.stdout == "MissingExtraError optuna is not installed; run: pip install 'lowland[lab]'\n"
    assert issubclass(MissingExtraError, ImportError)


def test_no_number_of_a_record_is_infinite(place: Path) -> None:
    record = grid(["plain@lr=1000.0|0.1"], recipe=long())
    numbers = [v for each in record.contestants for t in each.trials for _, v in t.epochs]
    assert all(math.isfinite(number) for number in numbers)


def test_the_call_that_compares_is_that_of_the_same_training(place: Path) -> None:
    recipe = lab.Recipe(lr=0.1, epochs=2, batch_size=20)
    record = swept([RATES], sampler="grid", out="elsewhere", recipe=recipe, budget="gradients", limit=6)
    (call,) = record.comparison
    assert call.startswith(f"lab.compare('{TASK}', ['plain@lr=")
    assert f", recipe=lab.{recipe!r}, budget='gradients', limit=6, out='elsewhere'" in call
