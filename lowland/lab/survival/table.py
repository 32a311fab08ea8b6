"""The measures of changed weights: their names, titles, settings and values."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from statistics import fmean, stdev
from typing import Any

from lowland.lab.metric import LOSS
from lowland.lab.quantize import targets
from lowland.lab.survival.changes import Change, Figures, Judge
from lowland.lab.survival.second import Second
from lowland.lab.task import Task
from lowland.runs.measures import Measure

GROUP = "survival"


class Table:
    """Turns the figures of changes into measures of one run.

    Args:
        judge: What has evaluated the changes, with the run and the settings.
        weights: The hash of the run's weights.
    """

    def __init__(self, judge: Judge, weights: str) -> None:
        self.judge, self.weights = judge, weights
        model = judge.trained.model
        changed = sum(target.tensor.numel() for target in targets(model))
        share = 100 * changed / sum(p.numel() for p in model.parameters())
        counted = f" These layers have {share:.3g} % of all parameters."
        self.help = HELP | {name: HELP[name] + counted for name in ("quantized", "noisy")}

    def measures(self, change: Change, before: Figures | None = None, after: Sequence[Figures] = ()) -> list[Measure]:
        """The measures of a change; without figures their values are None.

        Only the headline metric of the test part has titles, so the others have no columns in reports.

        Args:
            change: The change.
            before: The figures of the unchanged weights.
            after: The figures of each draw.
        """
        found = []
        metrics, unchanged = described(self.judge.trained.task), change.name == "unchanged"
        for part, examples in self.judge.examples.items():
            settings = {**change.settings, "examples": examples, "refresh_stats": self.judge.wanted.refresh_stats}
            for metric in metrics:
                name, shown = metric["name"], part == "test" and metric is metrics[0]
                values = [figures[part][name] for figures in after]
                key = f"{change.name}-{part}-{name}"
                title = f"{name}, {change.label}" if shown and unchanged else ""
                found.append(self._measure(key, title, metric, values, settings, self.help[change.name]))
                if unchanged:
                    continue
                lost = [] if before is None else _lost(before[part][name], values, metric)
                title = f"{name} lost, {change.label}" if shown else ""
                points = {**metric, "unit": "points" if metric["unit"] == "%" else metric["unit"]}
                found.append(self._measure(f"{key}-lost", title, points, lost, settings, self.help[change.name]))
        return found if change.second is None else [*found, *self._learned(change, change.second, after)]

    def _learned(self, change: Change, second: Second, after: Sequence[Figures]) -> list[Measure]:
        """What the model has learned of the second task: without learning, forgetting says nothing."""
        examples = len(second.loader.index["test"][: self.judge.wanted.examples])
        settings = {**change.settings, "examples": examples}
        metrics = described(second.task)
        return [
            self._measure(
                f"second-test-{metric['name']}",
                f"{metric['name']} on {second.text}" if metric is metrics[0] else "",
                metric,
                [figures["second"][metric["name"]] for figures in after],
                settings,
                self.help["second"],
            )
            for metric in metrics
        ]

    def _measure(
        self,
        name: str,
        title: str,
        metric: Mapping[str, Any],
        values: Sequence[float],
        settings: Mapping[str, Any],
        explanation: str,
    ) -> Measure:
        """The mean of the draws with its standard error; a single value has none."""
        finite = bool(values) and all(math.isfinite(value) for value in values)
        return Measure(
            group=GROUP,
            name=name,
            title=title,
            value=fmean(values) if finite else None,
            error=stdev(values) / math.sqrt(len(values)) if finite and len(values) > 1 else None,
            unit=metric["unit"],
            scale=metric["scale"],
            settings=settings,
            weights=self.weights,
            help=explanation if title else "",
        )


def described(task: Task) -> list[dict[str, Any]]:
    """The metrics of a task as in a run file, and the loss at the end; the first is the headline."""
    return [*(metric.described() for metric in task.metrics), LOSS]


def _lost(before: float, after: Iterable[float], metric: Mapping[str, Any]) -> list[float]:
    """How much worse each value is; positive is worse for every metric."""
    return [before - value if metric["higher"] else value - before for value in after]


HELP = {
    "unchanged": "The test part with the weights that the training left.",
    "quantized": "How much worse the test part is after the weights of linear and convolutional layers were rounded.",
    "noisy": (
        "How much worse the test part is with Gaussian noise on the weights of linear and convolutional layers, "
        "relative to their root mean square."
    ),
    "forgotten": "How much worse the first task's test part is after plain training on the second task.",
    "second": "The second task's test part after this training; without learning, forgetting says nothing.",
}
