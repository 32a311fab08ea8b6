"""The measures of flatness of one finished run: what each is called, what it depends on, and how it is taken."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

from torch import Tensor

from lowland import sharpness
from lowland.lab.training.trained import Trained
from lowland.runs.landscape import Curve
from lowland.runs.measures import Measure
from lowland.sharpness.balls import Norm

GROUP = "sharpness"
NAMES = ("worst", "average", "eigenvalues", "trace", "density", "critical", "slices", "between")
TOL = 1e-4  # the relative accuracy of eigenvalues
TOLERANCE = 0.01  # that of the critical learning rate
BETWEEN = 25  # the positions between two minima, so that both are positions, too
EXAMPLES = 256  # in one pass of a measure that has no micro-batches


@dataclass(frozen=True, kw_only=True)
class Flatness:
    """What is measured, and on which examples.

    Args:
        measures: worst, average: the rise of the loss within a radius; eigenvalues, trace, density: of the Hessian,
            which need lowland[curvature]; critical: the curvature along the gradient; slices: the loss along random
            directions; between: the loss on the line from the baseline's weights, for runs with a baseline of the same
            seed.
        rho: Radius of worst and average, >= 0; 0.05 for l2, of each weight for linf, relative to the weights if
            adaptive.
        m: Examples in a micro-batch of worst and average, >= 1.
        norm: The norm of the radius.
        adaptive: Measure the radius relative to the size of each weight, as in ASAM.
        examples: The first examples of the part that are measured, >= 1.
        part: The part of the data: train, test, or validation if there is one.
        steps: Ascent steps of worst, >= 1; one step is the m-sharpness.
        starts: Ascents of worst, >= 1: the first from the weights, further ones from random points.
        directions: Random directions of average for each micro-batch, >= 1.
        eigenvalues: How many of the largest eigenvalues, >= 1; the smallest is measured, too.
        samples: Random vectors of trace, >= 2.
        depth: Lanczos steps of density, >= 2.
        points: Positions on the line of slices, >= 3 and odd.
        plane_points: Positions along each axis of the plane of slices, >= 3 and odd.
        seed: Seed of all random numbers of the measures, >= 0.
    """

    measures: tuple[str, ...] = NAMES[:-1]
    rho: float = 0.05
    m: int = 128
    norm: Norm = "l2"
    adaptive: bool = False
    examples: int = 2048
    part: str = "train"
    steps: int = 10
    starts: int = 1
    directions: int = 4
    eigenvalues: int = 3
    samples: int = 30
    depth: int = 40
    points: int = 21
    plane_points: int = 11
    seed: int = 0


class Gauge(NamedTuple):
    """One measurement of one run.

    Attributes:
        names: The names of its measures, or the kind of its curve.
        settings: What the values depend on besides the weights; values with equal settings are kept.
        take: Measures, and returns the measures and curves.
        curve: Whether it gives a curve instead of measures.
    """

    names: tuple[str, ...]
    settings: dict[str, Any]
    take: Callable[[], list[Measure | Curve]]
    curve: bool = False


class Gauges:
    """The measurements of one run.

    Args:
        trained: The run.
        flatness: What is measured.
        baseline: The state dict and the hash of the baseline's final weights of the same seed; None without one.
    """

    def __init__(
        self, trained: Trained, flatness: Flatness, baseline: tuple[dict[str, Tensor], str] | None = None
    ) -> None:
        self._trained, self._flatness, self._baseline = trained, flatness, baseline
        self._weights = trained.record.end.weights_sha256 if trained.record.end is not None else ""
        loader = trained.loader
        available = len(loader.index[flatness.part]) if flatness.part in loader.index else 0
        self._seen = {"examples": min(flatness.examples, available), "part": flatness.part}

    def of(self, name: str) -> list[Gauge]:
        """The measurements that a name of ``NAMES`` stands for."""
        gauges: list[Gauge] = getattr(self, f"_{name}")()
        return gauges

    def _batches(self, size: int = EXAMPLES) -> Iterator[Any]:
        return self._trained.loader.evaluation(size, part=self._flatness.part, most=self._flatness.examples)

    def _arguments(self, size: int = EXAMPLES) -> tuple[Any, ...]:
        return self._trained.model, self._trained.task.loss, self._batches(size)

    @property
    def _cut(self) -> Any:
        return self._trained.task.cut

    def _measure(self, name: str, title: str, value: Any, error: Any, settings: dict[str, Any], help: str) -> Measure:
        return Measure(
            group=GROUP, name=name, title=title, value=float(value), error=None if error is None else float(error),
            settings=settings, weights=self._weights, help=help,
        )  # fmt: skip

    def _ball(self) -> tuple[dict[str, Any], str]:
        """The settings of a radius, and the addition to a title."""
        f = self._flatness
        settings = {"rho": float(f.rho), "m": f.m, "norm": f.norm, "adaptive": f.adaptive}
        return settings, ", adaptive" * f.adaptive + ", l∞" * (f.norm == "linf")

    def _worst(self) -> list[Gauge]:
        f = self._flatness
        ball, variant = self._ball()
        random = {"seed": f.seed} if f.starts > 1 else {}
        settings = ball | {"steps": f.steps, "starts": f.starts} | random | self._seen

        def take() -> list[Measure | Curve]:
            options = ball | {"steps": f.steps, "starts": f.starts, "seed": f.seed}
            value, error = sharpness.worst_sharpness(*self._arguments(f.m), **options, cut=self._cut)
            text = "The largest rise of the loss of m examples within the radius rho that gradient ascent finds."
            return [self._measure("worst", f"worst case{variant}", value, error, settings, text)]

        return [Gauge(("worst",), settings, take)]

    def _average(self) -> list[Gauge]:
        f = self._flatness
        ball, variant = self._ball()
        settings = ball | {"directions": f.directions, "seed": f.seed} | self._seen

        def take() -> list[Measure | Curve]:
            options = ball | {"directions": f.directions, "seed": f.seed}
            value, error = sharpness.average_sharpness(*self._arguments(f.m), **options, cut=self._cut)
            text = "The mean rise of the loss at random displacements of the length rho."
            return [self._measure("average", f"average case{variant}", value, error, settings, text)]

        return [Gauge(("average",), settings, take)]

    def _eigenvalues(self) -> list[Gauge]:
        f = self._flatness
        settings = {"tol": TOL, "seed": f.seed} | self._seen
        names = tuple(f"eigenvalue {i}" for i in range(1, f.eigenvalues + 1))

        def take_largest() -> list[Measure | Curve]:
            options = {"k": f.eigenvalues, "tol": TOL, "seed": f.seed, "cut": self._cut}
            values, _ = sharpness.hessian_eigenvalues(*self._arguments(), **options)
            return [
                self._measure(name, f"λ{i}", value, None, settings, f"Eigenvalue {i} of the Hessian, from the largest.")
                for i, (name, value) in enumerate(zip(names, values, strict=True), 1)
            ]

        def take_smallest() -> list[Measure | Curve]:
            options = {"which": "smallest", "tol": TOL, "seed": f.seed, "cut": self._cut}
            values, _ = sharpness.hessian_eigenvalues(*self._arguments(), **options)
            text = "The smallest eigenvalue of the Hessian; negative if the loss falls off along a direction."
            return [self._measure("smallest eigenvalue", "λmin", values[0], None, settings, text)]

        return [Gauge(names, settings, take_largest), Gauge(("smallest eigenvalue",), settings, take_smallest)]

    def _trace(self) -> list[Gauge]:
        f = self._flatness
        settings = {"samples": f.samples, "seed": f.seed} | self._seen

        def take() -> list[Measure | Curve]:
            value, error = sharpness.hessian_trace(*self._arguments(), samples=f.samples, seed=f.seed, cut=self._cut)
            return [self._measure("trace", "trace", value, error, settings, "The sum of the Hessian's eigenvalues.")]

        return [Gauge(("trace",), settings, take)]

    def _critical(self) -> list[Gauge]:
        settings = {"tolerance": TOLERANCE} | self._seen

        def take() -> list[Measure | Curve]:
            crossing = sharpness.critical_sharpness(*self._arguments(), tolerance=TOLERANCE, cut=self._cut)
            text = "2 / c for the smallest learning rate c at which a step along the gradient does not lower the loss."
            return [self._measure("critical", "critical", crossing.sharpness, None, settings, text)]

        return [Gauge(("critical",), settings, take)]

    def _curve(self, kind: str, settings: dict[str, Any], positions: Tensor, values: Tensor) -> Curve:
        return Curve(
            kind=kind, positions=positions.tolist(), values=values.tolist(), settings=settings, weights=self._weights
        )

    def _density(self) -> list[Gauge]:
        f = self._flatness
        settings = {"depth": f.depth, "seed": f.seed} | self._seen

        def take() -> list[Measure | Curve]:
            density = sharpness.hessian_density(*self._arguments(), depth=f.depth, seed=f.seed, cut=self._cut)
            return [self._curve("density", settings, *density.smoothed())]

        return [Gauge(("density",), settings, take, curve=True)]

    def _slices(self) -> list[Gauge]:
        f = self._flatness

        def gauge(kind: str, points: int, measure: Callable[..., sharpness.Slice]) -> Gauge:
            settings = {"points": points, "seed": f.seed} | self._seen

            def take() -> list[Measure | Curve]:
                curve = measure(*self._arguments(), points=points, seed=f.seed, cut=self._cut)
                return [self._curve(kind, settings, *curve)]

            return Gauge((kind,), settings, take, curve=True)

        return [gauge("line", f.points, sharpness.loss_line), gauge("plane", f.plane_points, sharpness.loss_plane)]

    def _between(self) -> list[Gauge]:
        if self._baseline is None:
            return []
        state, weights = self._baseline
        settings = {"points": BETWEEN, "from": weights[:8]} | self._seen

        def take() -> list[Measure | Curve]:
            model, loss, batches = self._arguments()
            line = sharpness.loss_between(model, state, loss, batches, points=BETWEEN, cut=self._cut)
            # the model is at 0 and the baseline at 1; the figure begins at the baseline
            return [self._curve("between", settings, (1 - line.positions).flip(0), line.losses.flip(0))]

        return [Gauge(("between",), settings, take, curve=True)]
