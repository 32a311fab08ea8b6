"""The command ``lowland bench`` with one subcommand per measurement."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Annotated

import tyro
from rich.console import Console

from lowland.cli.bench.comm import Comm
from lowland.cli.bench.launches import Launches
from lowland.cli.bench.overhead import Overhead
from lowland.cli.bench.parallel import Parallel
from lowland.cli.bench.plan import Plan


@dataclass(kw_only=True)
class Bench:
    """Measure or count the costs of methods; print tables and write JSON."""

    what: (
        Annotated[Overhead, tyro.conf.subcommand(Overhead.name)]
        | Annotated[Launches, tyro.conf.subcommand(Launches.name)]
        | Annotated[Parallel, tyro.conf.subcommand(Parallel.name)]
        | Annotated[Comm, tyro.conf.subcommand(Comm.name)]
        | Annotated[Plan, tyro.conf.subcommand(Plan.name)]
    ) = field(default_factory=Overhead)

    def run(self, console: Console, argv: Sequence[str]) -> int:
        """Run the measurement."""
        return self.what.run(console, argv)
