"""The entry point: parses the arguments, runs one command, and reports an error on one line."""

from __future__ import annotations

import importlib.util
import os
import shlex
import signal
import sys
import threading
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from importlib.metadata import version
from types import FrameType
from typing import Annotated, Any, Union

from lowland.core.errors import LowlandError, MissingExtraError

DESCRIPTION = "Train with sharpness-aware minimization, and compare methods under equal budgets."
WIDTH = 110  # width of output to a file or pipe; wide enough for every table
PACKAGES = {"tyro": "tyro", "rich": "rich", "numpy": "numpy"}


class _Terminated(KeyboardInterrupt):
    """SIGTERM outside of a training, when there is no state to save."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command.

    Args:
        argv: The arguments; by default, those of the process.

    Returns:
        The exit code: 0; 1 if another rank is gone; 2 after an error that the message explains; 3 if a training
        diverged; 130 or 143 after SIGINT or SIGTERM.
    """
    argv = sys.argv[1:] if argv is None else list(argv)
    if argv == ["--version"]:
        print(f"lowland {version('lowland')}, torch {version('torch')}")
        return 0
    try:
        with _terminable():
            return _dispatch(argv)
    except LowlandError as error:
        if os.environ.get("LOWLAND_DEBUG"):
            raise
        print(f"lowland: {_who()}error: {error}", file=sys.stderr)
        return 2
    except RuntimeError as error:
        if "gloo" not in str(error) or os.environ.get("LOWLAND_DEBUG"):
            raise
        reason = str(error).splitlines()[0]
        print(f"lowland: {_who()}error: another rank is gone, or too late ({reason})", file=sys.stderr)
        return 1
    except KeyboardInterrupt:  # before a command ran
        return 128 + signal.SIGINT


def _dispatch(argv: Sequence[str]) -> int:
    missing = [package for package, module in PACKAGES.items() if importlib.util.find_spec(module) is None]
    if missing and argv in (["--help"], ["-h"]):
        print(f"{DESCRIPTION}\n\nThe commands need more packages: pip install 'lowland[lab]'")
        return 0
    if missing:
        raise MissingExtraError(missing[0], "lab")
    import tyro
    from rich.console import Console

    from lowland.cli.options import Options
    from lowland.cli.plan import Plan
    from lowland.lab.training.signals import Stopped
    from lowland.parallel import ranks, world

    config = (tyro.conf.OmitArgPrefixes, tyro.conf.OmitSubcommandPrefixes, tyro.conf.FlagCreatePairsOff)
    selected: Any = tyro.cli(_commands(), prog="lowland", description=DESCRIPTION, args=list(argv), config=config)
    console = Console(width=None if sys.stdout.isatty() else WIDTH, quiet=ranks()[0] > 0)
    with _readable_warnings(Console(stderr=True)):
        try:
            # Several runs of one command share the ranks.
            given = getattr(selected, "mesh", None)
            mesh = None if given == "auto" else given
            with world(mesh, selected.device) if isinstance(selected, Options | Plan) else nullcontext():
                return int(selected.run(console, argv))
        except Stopped as stop:
            return _stopped(selected, argv, stop.signum)
        except KeyboardInterrupt as stop:
            return _stopped(selected, argv, signal.SIGTERM if isinstance(stop, _Terminated) else signal.SIGINT)


def _commands() -> Any:
    """The union type of all commands."""
    import tyro

    from lowland.cli.bench.choice import Bench
    from lowland.cli.compare import Compare
    from lowland.cli.convergence import Convergence
    from lowland.cli.methods import Methods
    from lowland.cli.plan import Plan
    from lowland.cli.report import Report
    from lowland.cli.sharpness import Sharpness
    from lowland.cli.simulate import Simulate
    from lowland.cli.survive import Survive
    from lowland.cli.sweep import Sweep
    from lowland.cli.tasks import Tasks
    from lowland.cli.train import Train

    kinds = {
        "compare": Compare, "train": Train, "report": Report, "methods": Methods, "tasks": Tasks, "bench": Bench,
        "sharpness": Sharpness, "survive": Survive, "sweep": Sweep, "convergence": Convergence, "plan": Plan,
        "simulate": Simulate,
    }  # fmt: skip
    return Union[tuple(Annotated[kind, tyro.conf.subcommand(name)] for name, kind in kinds.items())]  # noqa: UP007


def _who() -> str:
    """The prefix that names the rank; empty for a single process."""
    several = int(os.environ.get("WORLD_SIZE", "1")) > 1
    return f"rank {os.environ.get('RANK', '0')}: " if several else ""


def _stopped(chosen: Any, argv: Sequence[str], signum: int) -> int:
    name = signal.Signals(signum).name
    resumption = chosen.resumption(argv) if hasattr(chosen, "resumption") else ["lowland", *argv]
    if _who() in ("", "rank 0: "):
        print(f"lowland: stopped by {name}; to go on: {shlex.join(resumption)}", file=sys.stderr)
    return 128 + signum


@contextmanager
def _terminable() -> Iterator[None]:
    """Turn SIGTERM into an exception, as Python does with SIGINT."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def terminate(signum: int, frame: FrameType | None) -> None:
        raise _Terminated

    previous = signal.signal(signal.SIGTERM, terminate)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, previous)


@contextmanager
def _readable_warnings(console: Any) -> Iterator[None]:
    """Show warnings of the lab on one line, without file and line number."""
    from lowland.lab.training.progress import LabWarning

    original = warnings.showwarning

    def show_warning(message: Warning | str, category: type[Warning], *place: Any, **more: Any) -> None:
        if issubclass(category, LabWarning):
            console.print(f"warning: {message}", style="yellow", markup=False, highlight=False, soft_wrap=True)
        else:
            original(message, category, *place, **more)

    warnings.showwarning = show_warning
    try:
        yield
    finally:
        warnings.showwarning = original
