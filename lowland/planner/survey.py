"""Measures all layouts of a number of ranks at once, and the methods' own work beside them."""

from __future__ import annotations

import os
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from statistics import median
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import allreduce_hook
from torch.nn.parallel import DistributedDataParallel

from lowland.core.errors import LowlandError
from lowland.engine import Engine
from lowland.methods.base import Method
from lowland.parallel import broadcast
from lowland.planner import collectives, measure
from lowland.planner.calibration import Calibration, cuttable, fewest, record
from lowland.planner.canned import Recorded
from lowland.planner.free import room
from lowland.planner.layout import Layout
from lowland.planner.measure import Own, Rates
from lowland.planner.rehearsal import Rehearsal
from lowland.planner.subject import Subject, train_step
from lowland.planner.suitable import fits_method
from lowland.planner.turns import ROUNDS, Tick, Turn, take
from lowland.planner.typical import typical

SINGLE = Layout()
COPIES = 10  # times the parameters: model, gradient, what optimizer and method keep, and answers of passes


@dataclass(frozen=True, kw_only=True)
class Measured:
    """The steps of a method in a layout, as they were measured.

    Args:
        method: The method as text.
        layout: The layout.
        seconds: The mean time of a step without outliers.
        bytes: Bytes of gradients that the first rank sent in a step.
    """

    method: str
    layout: Layout
    seconds: float
    bytes: float


@dataclass(frozen=True, kw_only=True)
class Survey:
    """What one number of ranks was measured to take.

    Args:
        ranks: The number of ranks.
        examples: The examples of a step.
        parameters: The bytes of the parameters.
        quiet: The rates of one device alone.
        busy: The rates of ranks that train at the same time, each for itself; on one rank those of ``quiet``.
        rates: The rates of every layout.
        own: What methods do beyond their passes; one entry for each width that they were told.
        measured: Steps that were measured beside, to be compared with predictions.
        cuttable: Whether the loss can be cut into micro-batches; a mean cannot.
        fewest: The fewest examples of a forward pass; batch normalization needs two.
        float32: Whether all weights are float32; bytes and memory are modeled for these alone.
    """

    ranks: int
    examples: int
    parameters: int
    quiet: Rates
    busy: Rates
    rates: Sequence[Rates]
    own: Sequence[Own]
    measured: Sequence[Measured] = ()
    cuttable: bool = True
    fewest: int = 1
    float32: bool = True

    def own_of(self, method: str, width: int) -> Own | None:
        """What a method does beyond its passes, told this width; None if it was not measured."""
        found = [o for o in self.own if o.method == method and o.width == width]
        return found[0] if found else None


@dataclass
class _Real:
    """The steps of a method as they are trained, for a comparison with what was predicted."""

    engine: Engine
    optimizers: Sequence[Any]
    batch: Any
    gradients: list[float] = field(default_factory=list)
    sums: list[int] = field(default_factory=list)
    reduced: list[int] = field(default_factory=lambda: [0])

    def step(self) -> None:
        """Take a step, and note how many gradients it asked for."""
        before = self.engine.cost.gradients
        train_step(self.engine, self.optimizers, self.batch)
        self.gradients.append(self.engine.cost.gradients - before)
        self.sums.append(self.engine.cost.bytes + self.reduced[0])

    def count(self) -> None:
        """Count the bytes of DistributedDataParallel's all-reduces, which run where the engine does not see them."""

        def counted(group: Any, bucket: Any) -> Any:
            buffer = bucket.buffer()
            self.reduced[0] += buffer.numel() * buffer.element_size()
            return allreduce_hook(group, bucket)

        # DistributedDataParallel reads the annotations, which must not be text here.
        counted.__annotations__ = {
            "bucket": dist.GradBucket,  # type: ignore[attr-defined]
            "return": torch.futures.Future[torch.Tensor],
        }
        if isinstance(self.engine.model, DistributedDataParallel):
            self.engine.model.register_comm_hook(None, counted)

    def sent(self, steps: int) -> float:
        """The mean of the bytes that this rank has sent in each of its last steps."""
        return (self.sums[-1] - self.sums[-1 - steps]) / steps


def meshes(layouts: Sequence[Layout], device: str) -> dict[Layout, Any]:
    """A ``DeviceMesh`` with the dimensions "probe" and "data" for every layout, over all ranks."""
    from torch.distributed.device_mesh import init_device_mesh

    made: dict[tuple[int, int], Any] = {}
    for layout in layouts:
        key = (layout.probe, layout.data)
        if layout.ranks > 1 and key not in made:
            made[key] = init_device_mesh(device, key, mesh_dim_names=("probe", "data"))
    return {layout: made.get((layout.probe, layout.data)) for layout in layouts}


def survey(
    subject: Subject,
    methods: Mapping[str, Method],
    layouts: Sequence[Layout],
    sizes: Mapping[Layout, Sequence[int]],
    *,
    rounds: int = ROUNDS,
    seconds: float | None = None,
    checked: bool = False,
    tick: Tick | None = None,
) -> Survey:
    """Measure passes, layouts and methods in the ranks of this process group; all ranks call it alike.

    Args:
        subject: The training. Its batch has the examples of a step.
        methods: The methods by their text. Those that the engine refuses here are left out.
        layouts: Layouts of all ranks.
        sizes: The examples of a rank at which the passes of a layout are timed, at least two that differ.
        rounds: How often each step is timed.
        seconds: About how long the rounds may take together; it takes the place of ``rounds``.
        checked: Measure the methods' steps themselves, too.
        tick: Called after every round with the fraction that is done.

    Returns:
        The same on all ranks.
    """
    ranks = dist.get_world_size() if dist.is_initialized() else 1
    mesh, recorded = meshes(layouts, subject.device.type), record(subject)
    bare = measure.arithmetic(subject, Calibration(), recorded=recorded)[0]
    turns = {"own": bare, **_passes(subject, layouts, sizes, mesh, ranks)}
    real = _reals(subject, methods, layouts, mesh) if checked else {}
    turns |= {("real", *key): Turn(one.step) for key, one in real.items()}
    pairs = [(text, width) for width in sorted({layout.width for layout in layouts}) for text in methods]
    laps: dict[Any, list[float]] = {}
    own: list[Own] = []
    groups = _fitting(subject, pairs)
    for number, group in enumerate(groups):
        rehearsed = _rehearsals(subject, methods, group, recorded)
        turns |= {("own", *key): one.turn() for key, one in rehearsed.items()}
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="the method asked for")  # calibrating steps leave groups idle
            of_all = None if tick is None else partial(_report, tick, number, len(groups))
            laps |= _together(take(turns, subject.device, rounds=rounds, limit=seconds, tick=of_all))
        turns = {}
        own += [_own(key, one, laps["own", *key], layouts) for key, one in rehearsed.items()]
        # The next group, without passes, gets the memory of this one.
        rehearsed, seconds, rounds = {}, None, min(len(laps["own"]), ROUNDS)
    busy = _rates(laps, "busy", SINGLE)
    return Survey(
        ranks=ranks,
        examples=subject.size or 1,
        parameters=subject.parameters,
        quiet=_rates(laps, "quiet", SINGLE) if ranks > 1 else busy,
        busy=busy,
        rates=[busy if layout == SINGLE else _rates(laps, layout, layout) for layout in layouts],
        own=own,
        measured=[_measured(key, one, laps["real", *key]) for key, one in real.items()],
        cuttable=cuttable(subject),
        fewest=fewest(subject),
        float32=subject.float32,
    )


def _rehearsals(
    subject: Subject, methods: Mapping[str, Method], group: Sequence[tuple[str, int]], recorded: Sequence[Recorded]
) -> dict[tuple[str, int], Rehearsal]:
    """The rehearsals of a group of methods, each with a width; those that the engine refuses are left out."""
    return {
        (text, width): made
        for text, width in group
        for made in measure.attempted(subject, [(text, methods[text])], width, recorded).values()
    }


def _own(key: tuple[str, int], one: Rehearsal, laps: Sequence[float], layouts: Sequence[Layout]) -> Own:
    """What a method does beyond its passes, and what it asks for on the part of a rank in these layouts."""
    numbers = sorted({each.data for each in layouts if each.width == one.width and each.data > 1})
    parts = measure.parts(one.subject, one.method, one.width, one.recorded, numbers)
    return measure.own(key[0], one.canned, laps, one.whole, parts)


def _fitting(subject: Subject, pairs: Sequence[tuple[str, int]]) -> list[Sequence[tuple[str, int]]]:
    """Cut methods and widths into groups whose copies fit into half of the free memory; of a small model, one group."""
    free, most = room(subject.device), len(pairs)
    if free is not None:
        ranks = int(os.environ.get("LOCAL_WORLD_SIZE", dist.get_world_size() if dist.is_initialized() else 1))
        share = free // 2 // (ranks if subject.device.type == "cpu" else 1)
        most = max(share // max(COPIES * subject.parameters, 1), 1)
    most = broadcast(most)
    return [pairs[start : start + most] for start in range(0, len(pairs), most)]


def _report(tick: Tick, number: int, count: int, fraction: float) -> None:
    """Report the fraction of a group that is done as one of all groups."""
    tick((number + fraction) / count)


def _passes(
    subject: Subject,
    layouts: Sequence[Layout],
    sizes: Mapping[Layout, Sequence[int]],
    mesh: Mapping[Layout, Any],
    ranks: int,
) -> dict[Any, Turn]:
    """The turns that time passes: of ranks that train for themselves, of one rank alone, and in every layout."""
    turns: dict[Any, Turn] = {}
    apart = sorted({n for layout in layouts for n in sizes[layout]})
    for key, turn in measure.passes(subject, SINGLE, apart, alone=True).items():
        turns["busy", *key] = turn
        if ranks > 1:
            turns["quiet", *key] = Turn(turn.step, turn.prepare, alone=True)
    for layout in layouts:
        if layout != SINGLE:
            made = measure.passes(subject, layout, sizes[layout], mesh[layout])
            turns |= {(layout, *key): turn for key, turn in made.items()}
            bare = collectives.turns(layout, mesh[layout], subject.parameters, subject.device)
            turns |= {("bare", layout, *key): turn for key, turn in bare.items()}
    return turns


def _rates(laps: Mapping[Any, Sequence[float]], name: Any, layout: Layout) -> Rates:
    """The rates from the turns that have this name."""
    chosen = {key[1:]: row for key, row in laps.items() if isinstance(key, tuple) and key[0] == name}
    bare = {key[2:]: row for key, row in laps.items() if isinstance(key, tuple) and key[:2] == ("bare", name)}
    rates = measure.rates(layout, chosen, median(laps["own"]), alone=name in ("busy", "quiet"))
    return replace(rates, collectives=collectives.lines(bare))


def _reals(
    subject: Subject, methods: Mapping[str, Method], layouts: Sequence[Layout], mesh: Mapping[Layout, Any]
) -> dict[tuple[str, Layout], _Real]:
    """The methods as they are trained, in every layout that suits them."""
    made = {}
    for layout in layouts:
        index = 0 if mesh[layout] is None or layout.data == 1 else mesh[layout]["data"].get_local_rank()
        batch = subject.batches.chunk(subject.batch, layout.data)[index]
        for text, method in methods.items():
            if not fits_method(layout, subject, method):
                continue
            try:
                one = _Real(*subject.engine(method, layout, mesh[layout]), batch)
                one.count()
                one.step()
            except LowlandError:
                continue
            made[text, layout] = one
    return made


def _measured(key: tuple[str, Layout], one: _Real, laps: Sequence[float]) -> Measured:
    seconds = typical(laps, one.gradients[-len(laps) :]) or 0.0
    return Measured(method=key[0], layout=key[1], seconds=seconds, bytes=one.sent(len(laps)))


def _together(seconds: dict[Any, list[float]]) -> dict[Any, list[float]]:
    """The times of all ranks: a step has ended when its last rank has."""
    if not dist.is_initialized() or dist.get_world_size() == 1:
        return seconds
    everyone: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(everyone, list(seconds.values()))
    merged = {}
    for place, name in enumerate(seconds):
        rows = [laps[place] for laps in everyone if laps[place]]
        merged[name] = [max(laps) for laps in zip(*rows, strict=True)]
    return merged
