"""Plans a training: predicts every method in every layout that fits, and says which is fastest and why."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import torch
import torch.distributed as dist

from lowland.core.errors import ONE_EXAMPLE, ArgumentError, BatchError, LowlandError
from lowland.engine import Engine
from lowland.methods import METHODS, make, spell
from lowland.methods.base import Method
from lowland.planner import predict
from lowland.planner.asks import Step
from lowland.planner.costs import REQUIRED
from lowland.planner.fits import CUTS, memory, sizes_of
from lowland.planner.free import room
from lowland.planner.layout import Layout, suits
from lowland.planner.predict import Prediction
from lowland.planner.record import to_json
from lowland.planner.subject import Subject, train_step
from lowland.planner.suitable import suitable, undivided
from lowland.planner.survey import Survey, survey
from lowland.planner.turns import Tick
from lowland.planner.untouched import untouched
from lowland.planner.why import doubts, why

SECONDS = 60.0  # of measuring


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What a training is predicted to take, with every method in every layout that fits.

    Attributes:
        predictions: The predictions, the fastest first.
        surveys: What was measured, one survey for each number of ranks.
        left_out: Methods that cannot train here, each with the reason.
        room: The bytes of memory that are free, for all ranks of a device together; None where it is not known.
        notes: What was not planned, or is known less well, in sentences.
    """

    predictions: Sequence[Prediction]
    surveys: Sequence[Survey]
    left_out: Mapping[str, str] = field(default_factory=dict)
    room: int | None = None
    notes: Sequence[str] = ()

    def best(self, method: str | None = None) -> Prediction:
        """The fastest prediction of a method, or of all methods.

        Raises:
            ArgumentError: There is none for this method.
        """
        chosen = [p for p in self.predictions if method in (None, p.method)]
        if not chosen:
            known = ", ".join(dict.fromkeys(p.method for p in self.predictions)) or "none"
            raise ArgumentError(f"method must be one of those that were planned, {known}, but is {method!r}")
        return chosen[0]

    def why(self, method: str) -> str:
        """One sentence: what bounds the method's fastest layout, and what the next one would take."""
        return why(self.best(method), [p for p in self.predictions if p.method == method])

    def __str__(self) -> str:
        return "\n".join(lines(self))

    def to_json(self) -> dict[str, Any]:
        """The plan as dictionaries, lists, numbers and text."""
        return {
            "predictions": [{**asdict(p), "bound": p.bound, "shown": str(p.layout)} for p in self.predictions],
            "surveys": [to_json(each) for each in self.surveys],
            "left_out": dict(self.left_out),
            "room": self.room,
            "notes": list(self.notes),
            "why": {name: self.why(name) for name in predict.best(self.predictions)},
        }


def plan(
    engine: Engine,
    batch: Any,
    methods: Sequence[str | Method] | None = None,
    *,
    seconds: float = SECONDS,
    tick: Tick | None = None,
) -> Plan:
    """Plan the training of an engine with the ranks of this process group, or on one device without one.

    Nothing of the engine changes, and no random number of the training is drawn. Its model is copied for every layout,
    and for as many methods at once as half of the free memory holds. All ranks call this alike.

    Args:
        engine: The engine. Its model is not wrapped, and its method is planned if ``methods`` is None.
        batch: A batch of one step of all ranks together, on the model's device.
        methods: The methods, as text or as objects.
        seconds: About how long the measuring may take, > 0.
        tick: Called after every round of steps with the fraction that is done.

    Raises:
        UsageError: The engine has no loss function or several modules, its model is wrapped or sharded or cannot be
            copied, or an optimizer steps by a closure.
        ArgumentError: A method is unknown, or ``seconds`` is not above 0.
        BatchError: A part of the batch is too small for batch normalization.
    """
    if not isinstance(seconds, int | float) or not 0 < seconds < float("inf"):
        raise ArgumentError(f"seconds must be a number above 0, but is {seconds!r}; 60 is the default")
    if isinstance(methods, str | Method):
        raise ArgumentError(f"methods must be a list, but is {methods!r}; write [{methods!r}]")
    subject = Subject.of(engine, batch)
    chosen = dict(map(named, [engine.method] if methods is None else methods))
    try:
        with untouched(subject.model, subject.loss_fn, subject.batch, subject.device):
            return of_subject(subject, chosen, seconds=seconds, tick=tick)
    except ValueError as error:
        if ONE_EXAMPLE not in str(error):
            raise
        raise BatchError(
            f"the parts of the batch that are measured must have two examples or more, because the model has batch "
            f"normalization, but one had a single example ({error}); pass a batch of at least four examples"
        ) from error


def named(method: str | Method) -> tuple[str, Method]:
    """A method with its text."""
    if not isinstance(method, str | Method):
        raise ArgumentError(f"methods must be texts or lowland methods, but one is {method!r}; write 'sam' or SAM()")
    if isinstance(method, str):
        return method, make(method, fill=lambda key: REQUIRED.get(key, {}))
    try:
        return spell(method), method
    except ArgumentError:
        return repr(method), method


def catalog() -> list[str]:
    """All methods of the catalog that need no fields."""
    return [name for name in METHODS if name not in REQUIRED]


def of_subject(
    subject: Subject,
    methods: Mapping[str, Method],
    *,
    seconds: float = SECONDS,
    tick: Tick | None = None,
    where: Callable[[Layout], bool] = lambda layout: True,
) -> Plan:
    """Plan a training with the ranks of this process group; the arguments are those of :func:`surveyed`."""
    shown, reasons = fitting(subject, methods)
    measured = surveyed(subject, shown, seconds=seconds, tick=tick, where=where)
    space = room(subject.device)
    memories = memory(subject, shown)
    return joined([measured], memories, shown, left_out=reasons, room=space, device=subject.device, notes=subject.notes)


def surveyed(
    subject: Subject,
    methods: Mapping[str, Method],
    *,
    seconds: float = SECONDS,
    tick: Tick | None = None,
    where: Callable[[Layout], bool] = lambda layout: True,
) -> Survey:
    """Measure the layouts of the ranks of this process group that suit a method.

    Args:
        subject: The training.
        methods: The methods by their text.
        seconds: About how long the measuring may take.
        tick: Called after every round with the fraction that is done.
        where: Whether a layout may be chosen.
    """
    chosen = suitable(dist.get_world_size() if dist.is_initialized() else 1, subject, methods, where)
    sizes = {each: sizes_of(subject.size, each) for each in chosen}
    return survey(subject, methods, chosen, sizes, seconds=seconds, tick=tick)


def fitting(subject: Subject, methods: Mapping[str, Method]) -> tuple[dict[str, Method], dict[str, str]]:
    """The methods that take a step here, and the reasons why the others refuse it."""
    shown, reasons = {}, {}
    for text, method in methods.items():
        try:
            with torch.random.fork_rng(devices=[subject.device] if subject.device.type == "cuda" else []):
                train_step(*subject.engine(method, Layout(), alone=True), subject.batch)
        except LowlandError as error:
            reasons[text] = str(error)
        else:
            shown[text] = method
    if not shown:
        raise ArgumentError(f"no method can train here: {'; '.join(reasons.values()) or 'none is given'}")
    return shown, reasons


def joined(
    surveys: Iterable[Survey],
    memories: Mapping[str, Callable[[Layout], float]],
    methods: Mapping[str, Method],
    *,
    left_out: Mapping[str, str],
    room: int | None,
    device: torch.device,
    notes: Sequence[str] = (),
) -> Plan:
    """The plan from surveys of several numbers of ranks.

    Args:
        surveys: The surveys.
        memories: From :func:`memory`.
        methods: The methods by their text.
        left_out: Methods that cannot train here, each with the reason.
        room: From :func:`room`.
        device: The device; the ranks of a machine share its CPU's memory.
        notes: What is not planned.
    """
    surveys = list(surveys)
    every = [
        replace(one, memory=memories[one.method](one.layout) if one.method in memories and each.float32 else None)
        for each in surveys
        for one in predictions(each, methods)
    ]
    local = os.environ.get("LOCAL_WORLD_SIZE")
    rooms = {
        n: None if room is None else room // (int(local or n) if device.type == "cpu" else 1)
        for n in {p.layout.ranks for p in every}
    }
    kept = [p for p in every if (r := rooms[p.layout.ranks]) is None or p.memory is None or p.memory <= r]
    if not kept:
        raise ArgumentError(_nothing(surveys, every, room))
    return Plan(
        predictions=sorted(kept, key=predict.order),
        surveys=surveys,
        left_out=dict(left_out),
        room=room,
        notes=[*notes, *doubts(surveys)],
    )


def _nothing(surveys: Sequence[Survey], every: Sequence[Prediction], room: int | None) -> str:
    """The message that no layout is left."""
    if every:
        least = min(p.memory for p in every if p.memory is not None)
        return (
            f"every rank must have the memory of a step, at least {least / 1e6:.0f} MB, but all together have "
            f"{(room or 0) / 1e6:.0f} MB; take a smaller batch or fewer processes"
        )
    ranks, sizes = (sorted({getattr(s, name) for s in surveys}) for name in ("ranks", "examples"))
    return undivided(ranks, sizes)


def predictions(measured: Survey, methods: Mapping[str, Method]) -> list[Prediction]:
    """The predictions from one survey: every method in every layout that suits it, with and without micro-batches."""
    made = []
    for rates in measured.rates:
        for text in methods:
            own = measured.own_of(text, rates.layout.width)
            asked = () if own is None else own.asked(rates.layout.data)
            if own is None or not asked or not suits(rates.layout, asked):
                continue
            part = measured.examples // rates.layout.data
            cuts = CUTS[1:] if measured.cuttable else ()
            for micro in dict.fromkeys([None, *(part // cut for cut in cuts if part // cut)]):
                if micro is not None and not _cut_well(asked, part, micro, measured.fewest):
                    continue
                layout = replace(rates.layout, micro_batch=micro)
                made.append(
                    predict.predict(
                        own,
                        layout,
                        measured.examples,
                        here=rates,
                        busy=measured.busy,
                        quiet=measured.quiet,
                        parameters=measured.parameters,
                    )
                )
                if not measured.float32:
                    made[-1] = replace(made[-1], bytes=None)
    return made


def _cut_well(asked: Sequence[Step], part: int, micro: int, fewest: int) -> bool:
    """Whether no micro-batch of a pass has fewer examples than the model needs."""
    sizes = {part, *(round(one.examples * part) for step in asked for ask in step for one in ask)}
    return all(min(predict.pieces(n, micro)) >= min(fewest, n) for n in sizes)


def lines(plan: Plan) -> list[str]:
    """The fastest layout of every method, the fastest method first, and the notes, in lines of text."""
    return [*(f"{name} on {plan.why(name)}" for name in predict.best(plan.predictions)), *plan.notes]
