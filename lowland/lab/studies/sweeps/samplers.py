"""The parts of Optuna that a sweep uses: storage, samplers, pruners and the distributions of ranges."""

from __future__ import annotations

import hashlib
import itertools
import re
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from lowland.core.errors import ArgumentError, MissingExtraError
from lowland.lab.studies.sweeps.locks import FileLock, Locks
from lowland.lab.studies.sweeps.ranges import Choices, Range
from lowland.lab.studies.sweeps.template import Parameter
from lowland.runs.file import remove_incomplete_line

try:
    import optuna
    from optuna.distributions import BaseDistribution
    from optuna.samplers import BaseSampler
    from optuna.storages.journal import JournalFileBackend
    from optuna.trial import FrozenTrial, TrialState
except ImportError:
    raise MissingExtraError("optuna", "lab") from None

JOURNAL = "sweeps.journal"
STARTUP = 10  # the random trials with which TPE begins
JUDGED = 5  # the finished trials that the median pruner needs
SURPLUS = "surplus"  # marks a trial that two processes began at once, beyond the number of trials
SAMPLERS: dict[str, str] = {
    "tpe": f"TPE (multivariate), after {STARTUP} random trials",
    "random": "random search",
    "grid": "a grid",
}
PRUNERS: dict[str, str] = {
    "none": "none",
    "median": f"median of the finished trials at the same epoch, from {JUDGED} finished trials on",
    "hyperband": "hyperband, by epochs",
}


@contextmanager
def quiet() -> Iterator[None]:
    """Silence Optuna's messages about each trial, and its warnings about experimental features."""
    before = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", category=optuna.exceptions.ExperimentalWarning)
            yield
    finally:
        optuna.logging.set_verbosity(before)


def open_storage(url: str | None, locks: Locks) -> Any:
    """The storage of the studies: a database, or by default a journal file in the folder of the locks.

    Args:
        url: ``sqlite:///file.db``, ``postgresql://…`` or another URL of SQLAlchemy; None is the journal file.
        locks: The locks of the folder.

    Raises:
        ArgumentError: The URL is malformed, or the database cannot be opened.
        MissingExtraError: The driver of the database is not installed.
    """
    if url is None:
        return open_journal(locks.folder, locks)
    if "://" not in url:
        raise ArgumentError(
            f"storage must be a URL such as sqlite:///sweeps.db or postgresql://user@host/name, but is {url!r}; leave "
            "it out for a file in --out"
        )
    try:
        with locks.hold("storage"):  # two processes must not make the tables at once
            return optuna.storages.RDBStorage(url)
    except ImportError as error:
        raise ArgumentError(
            f"storage must be a database with a driver, but that of {masked(url)!r} is not installed ({error}); "
            "install it"
        ) from None
    except Exception as error:  # of SQLAlchemy, or of the driver
        reason = masked(next(iter(str(error).strip().splitlines()), type(error).__name__))
        raise ArgumentError(
            f"storage must be a database that can be opened, but {masked(url)!r} cannot be ({reason}); correct the URL"
        ) from None


def masked(text: str) -> str:
    """A text in which the password of a URL is hidden.

    Example:
        >>> masked("--storage postgresql://me:secret@host/name")
        '--storage postgresql://me:***@host/name'
    """
    return re.sub(r"(://[^:/@\s]*):[^/\s]*@", r"\1:***@", text)


def open_journal(folder: Path, locks: Locks) -> Any:
    """The storage in a file that several machines can share, also where databases cannot.

    A process that was killed while it wrote, or on a full disk, leaves an incomplete last line, which is removed.
    """
    lock: Any = FileLock(locks)
    path = folder / JOURNAL
    with locks.hold("journal"):
        if path.exists():
            remove_incomplete_line(path)
    backend = JournalFileBackend(str(path), lock_obj=lock)
    return optuna.storages.JournalStorage(backend)


def draw(trial: optuna.Trial, name: str, values: Range | Choices, points: int | None) -> str:
    """The text of a field's value in a trial, which is drawn at the first call.

    Args:
        trial: The trial.
        name: The name of the field.
        values: The range or the choices.
        points: The number of points of a grid in each range; None without a grid.
    """
    if isinstance(values, Choices) or points is not None:
        return str(trial.suggest_categorical(name, values.points(points or 2)))
    if values.integer:
        low, high, step = round(values.low), round(values.high), round(values.step or 1)
        return values.spell(trial.suggest_int(name, low, high, log=values.log, step=step))
    return values.spell(trial.suggest_float(name, values.low, values.high, log=values.log, step=values.step))


def counted(study: optuna.Study) -> list[FrozenTrial]:
    """The trials of a study by number, without the surplus ones."""
    trials = study._storage.get_all_trials(study._study_id, deepcopy=False)
    return sorted((t for t in trials if SURPLUS not in t.user_attrs), key=lambda trial: trial.number)


def index_of(study: optuna.Study, number: int) -> int:
    """The position of a trial among those that count."""
    return sum(trial.number < number for trial in counted(study))


class Reseeded(BaseSampler):
    """Draws each trial from a seed of its own, so that a sweep that goes on draws what it would have drawn.

    Args:
        make: Makes the sampler of a trial from a seed.
        key: A text from which the seeds are derived.
    """

    def __init__(self, make: Callable[[int], BaseSampler], key: str) -> None:
        self._make, self._key = make, key
        self._inner = make(0)

    def before_trial(self, study: optuna.Study, trial: FrozenTrial) -> None:
        """Make the sampler of this trial."""
        digest = hashlib.sha256(f"{self._key} {index_of(study, trial.number)}".encode()).digest()
        self._inner = self._make(int.from_bytes(digest[:4], "big"))
        self._inner.before_trial(study, trial)

    def infer_relative_search_space(self, study: optuna.Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        """See Optuna's class."""
        return self._inner.infer_relative_search_space(study, trial)

    def sample_relative(
        self, study: optuna.Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        """See Optuna's class."""
        return self._inner.sample_relative(study, trial, search_space)

    def sample_independent(
        self, study: optuna.Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        """See Optuna's class."""
        return self._inner.sample_independent(study, trial, param_name, param_distribution)

    def after_trial(
        self, study: optuna.Study, trial: FrozenTrial, state: TrialState, values: Sequence[float] | None
    ) -> None:
        """See Optuna's class."""
        self._inner.after_trial(study, trial, state, values)


class Grid(optuna.samplers.RandomSampler):
    """Gives the points of a grid one after the other; the last field varies fastest.

    Args:
        points: The values of each field, by name.
    """

    def __init__(self, points: Mapping[str, Sequence[str]]) -> None:
        super().__init__(seed=0)
        self._names = list(points)
        self._all = list(itertools.product(*points.values()))

    def sample_independent(
        self, study: optuna.Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        """The value of one field at the point of this trial."""
        point = self._all[index_of(study, trial.number) % len(self._all)]
        return point[self._names.index(param_name)]


def make_sampler(name: str, parameters: Sequence[Parameter], points: int | None, key: str) -> BaseSampler:
    """The sampler of a study; ``key`` decides what it draws."""
    if name == "grid":
        return Grid({each.name: each.values.points(points or 2) for each in parameters})
    if name == "random":
        return Reseeded(lambda seed: optuna.samplers.RandomSampler(seed=seed), key)
    return Reseeded(
        lambda seed: optuna.samplers.TPESampler(
            seed=seed, n_startup_trials=STARTUP, multivariate=True, constant_liar=True
        ),
        key,
    )


def make_pruner(name: str) -> optuna.pruners.BasePruner:
    """The pruner of a study."""
    if name == "median":
        return optuna.pruners.MedianPruner(n_startup_trials=JUDGED)
    return optuna.pruners.HyperbandPruner() if name == "hyperband" else optuna.pruners.NopPruner()
