"""``lowland train``: trains one model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from lowland.cli.display import display
from lowland.cli.options import DIVERGED, Options, command
from lowland.core.errors import ArgumentError
from lowland.lab.studies.compare import run_name
from lowland.lab.studies.contestants import grid
from lowland.lab.training.run import train


@dataclass(kw_only=True)
class Train(Options):
    """Train one model with one method.

    Args:
        method: The method, such as sam, or with hyperparameters sampa:rho=0.1,lam=0.2; `lowland methods` lists the
            methods. Your own method comes from a file or a package: vasso.py:VaSSO:theta=0.4, package.module:VaSSO.
        seed: Seed of initialization, data order, augmentation and label noise, >= 0.
        resume: Resume the run if its folder has one.
        name: Name of the run's folder in --out; by default made from task, model, method and seed.
    """

    method: str = "plain"
    seed: int = 0
    resume: bool = False
    name: str | None = None

    def run(self, console: Console, argv: Sequence[str]) -> int:
        """Train, and print the run folder."""
        if self.name is not None and (self.name in ("", ".", "..") or Path(self.name).name != self.name):
            raise ArgumentError(
                f"--name must be the name of a folder in --out, but is {self.name!r}; use --out for its place"
            )
        (config,) = grid(self.config(self.seed), [self.method], [self.seed])
        folder = self.out / (self.name or run_name(config))
        with display(console, 1, config.task.metrics) as bars:
            bars.begin(folder.name)
            line = train(config, folder, resume=self.resume, progress=bars.update, command=command(argv))
            bars.end(folder.name, line, kept=False)
        console.print(f"run: {folder}", markup=False, highlight=False, soft_wrap=True)
        return DIVERGED if line.get("diverged") else 0

    def resumption(self, argv: Sequence[str]) -> list[str]:
        """The command that resumes the run."""
        return command(argv if "--resume" in argv else [*argv, "--resume"])
