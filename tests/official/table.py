"""How closely lowland follows each release, as rows of a Markdown table."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator

from ranks import on_ranks

from official.files import deviation, names, recorded
from official.follow import Follower
from official.two_ranks import DESCRIBED, trained

REPOSITORY = re.compile(r"([\w-]+/[\w-]+)@([0-9a-f]{40})")


def measured(name: str) -> tuple[float, float | None]:
    """The largest deviation of a weight in this run, and of a statistic where these are to be compared."""
    run = recorded(name)
    if run.ranks == 2:
        paths = [path for told in DESCRIBED[name] for path in on_ranks(2, trained, name, told)]
        return max(deviation(path, run.weights) for path in paths), None
    follower = Follower(run).go()
    statistic = deviation(follower.buffers, run.arrays["buffers"]) if run.one_pass else None
    return deviation(follower.weights, run.weights), statistic


def of_files() -> Iterator[str]:
    """One row for every run."""
    yield "| run | weights | statistics |"
    yield "|---|---:|---:|"
    for name in names():
        yield f"| `{name}` | {' | '.join(map(_number, measured(name)))} |"


def of_releases() -> Iterator[str]:
    """One row for every method and release, with the largest deviation among its runs."""
    together: dict[tuple[str, str], list[str]] = defaultdict(list)
    for name in names():
        run = recorded(name)
        together[run.key.replace("switch", "sam"), run.meta["source"]].append(name)
    yield "| method | release | runs | weights | statistics |"
    yield "|---|---|---|---:|---:|"
    for (key, source), runs in sorted(together.items()):
        found = [measured(name) for name in runs]
        statistics = [s for _, s in found if s is not None]
        numbers = max(w for w, _ in found), max(statistics, default=None)
        listed = ", ".join(f"`{name}`" for name in runs)
        yield f"| `{key}` | {linked(source)} | {listed} | {' | '.join(map(_number, numbers))} |"


def linked(source: str) -> str:
    """``owner/repository@commit and more``, the first part as a link."""
    return REPOSITORY.sub(lambda m: f"[{m[1]}@{m[2][:7]}](https://github.com/{m[1]}/tree/{m[2]})", source)


def _number(value: float | None) -> str:
    return "–" if value is None else "0" if value == 0 else f"{value:.1e}"
