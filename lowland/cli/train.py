"""``lowland train``: one run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from rich.console import Console

from lowland.cli.display import display
from lowland.cli.options import Options, command
from lowland.lab.run import train


@dataclass(kw_only=True)
class Train(Options):
    """Train one model with one method.

    Args:
        method: Such as sam, or with hyperparameters sampa:rho=0.1,lam=0.2; `lowland methods` lists them.
        seed: Of initialization, data order, augmentation and label noise, >= 0.
        resume: Go on with the run in its folder, where there is one.
        name: The run's folder in --out; left out, made from task, model, method and seed.
    """

    method: str = "plain"
    seed: int = 0
    resume: bool = False
    name: str | None = None

    def run(self, console: Console, argv: Sequence[str]) -> int:
        """Train, and say where the run is."""
        config = self.config(self.method, self.seed)
        folder = self.out / (self.name or config.name)
        with display(console, 1) as shown:
            shown.begin(config.name)
            line = train(config, folder, resume=self.resume, progress=shown.update, command=command(argv))
            shown.end(config.name, line, kept=False)
        console.print(f"run: {folder}", markup=False, highlight=False, soft_wrap=True)
        return 0

    def resumption(self, argv: Sequence[str]) -> list[str]:
        """What to type to go on."""
        return command(argv if "--resume" in argv else [*argv, "--resume"])
