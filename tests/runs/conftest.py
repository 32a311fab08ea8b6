"""Run files made up for the tests of the reader."""

from made_runs import write_run

__all__ = ["write_run"]
