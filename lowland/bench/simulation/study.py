"""The study: methods on meshes in closed form and simulated, and where SAMPa is faster, as a record."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from importlib.metadata import version
from typing import Any, get_args

import lowland
from lowland.bench.simulation.contestant import Contestant, contestant
from lowland.core import checks
from lowland.core.errors import ArgumentError, UnknownNameError
from lowland.planner.costs import STEPS
from lowland.planner.frontier import advantage, critical_base, meshes
from lowland.planner.hardware import LINKS, link
from lowland.planner.ideal import predict
from lowland.planner.line import Line
from lowland.planner.links import Algorithm, Link, Network, flat
from lowland.planner.setting import Setting
from lowland.planner.simulation.noise import Noise
from lowland.planner.simulation.steps import step_times
from lowland.planner.simulation.training import Failures, steps_between, train
from lowland.report.planner.record import Base, Kept, Mark, Pair, Point, Scaling

GRID = 41  # batches and bandwidths of the figure of two devices
PARTS = 10_000  # of a training, from one checkpoint to the next, that are simulated; more are like them
LARGEST = 100_000  # devices
MOST_STEPS = 1_000_000
MOST_OF_A_TRAINING = 1e15  # steps; floating-point numbers count no more one by one
WIDEST = 3.0  # sigma; times then differ by a factor of 20, the exponential of 3
BATCHES, BANDWIDTHS = (1.0, 1e4), (1e8, 1e12)
OUTWARD = ("ethernet10", "ethernet100", "hdr", "ndr")  # links between hosts, drawn beside the chosen one
PAIRED = ("ethernet10", "pcie4", "pcie5", "nvlink3", "nvlink4")  # links of two devices, drawn as marks


@dataclass(frozen=True, kw_only=True)
class Choice:
    """What a user chooses; see ``lowland simulate --help``.

    Raises:
        ArgumentError: An argument breaks its rule.
    """

    devices: int = 10_000
    host: int = 8
    within: str = "nvlink4"
    between: str = "ndr"
    lanes: int = 8
    within_latency: float = 5e-6
    between_latency: float = 2e-5
    algorithm: Algorithm = "halving"
    methods: tuple[str, ...] = ("sam", "sampa", "micro-sam", "looksam", "async-sam")
    batch: float = 64
    global_batch: float = 16_384
    base: float = 0.01
    slope: float = 0.001
    forward: float = 1 / 3
    parameters: float = 25.6e6
    width: int = 4
    overlap: float = 0.5
    bucket: float = 25 * 2**20
    arithmetic: dict[str, float] = field(default_factory=dict)
    update: float = 0.0
    sigma: float = 0.05
    slow: float = 1.0
    mtbf: float = 50_000.0
    interval: float | None = None
    checkpoint: float = 30.0
    restart: float = 300.0
    examples: float = 1e12
    steps: int = 200
    seed: int = 0

    def __post_init__(self) -> None:
        checks.integer("devices", self.devices, 2, "10000 are simulated in a minute")
        if self.devices > LARGEST:
            raise ArgumentError(f"devices must be at most {LARGEST}, but are {self.devices}; simulate fewer")
        if self.host < 1 or self.host & (self.host - 1) or self.devices % self.host:
            raise ArgumentError(
                f"host must be a power of two that divides the devices, but is {self.host}, and there are "
                f"{self.devices} devices; 8 and 10000 are possible"
            )
        if not self.devices <= self.global_batch < math.inf or not 0 < self.batch < math.inf:
            raise ArgumentError(
                f"batches must have examples for every device, but batch is {self.batch!r} and global_batch "
                f"{self.global_batch!r} for {self.devices} devices; set more, or fewer devices"
            )
        checks.integer("lanes", self.lanes, 1, "8 is one for each device of a host of 8")
        checks.integer("width", self.width, 1, "4 is float32, 2 is bfloat16")
        checks.integer("steps", self.steps, 2, "200 show the mean to a few per mille")
        checks.integer("seed", self.seed, 0, "0 is the default")
        if self.steps > MOST_STEPS:
            raise ArgumentError(f"steps must be at most {MOST_STEPS}, but are {self.steps}; 200 show the mean")
        checks.within("sigma", self.sigma, 0, WIDEST, "0.05 is about 5 %, 1 a factor of 2.7")
        checks.within("forward", self.forward, 0, 1, "0.333 is usual")
        for name in ("base", "slope"):
            checks.at_least(name, getattr(self, name), 0, "give seconds, such as 0.001")
        for name in ("parameters", "examples", "mtbf", "interval"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise ArgumentError(f"{name} must be > 0, but is {value!r}; give a positive number")
        for name in ("parameters", "examples"):
            if getattr(self, name) == math.inf:
                raise ArgumentError(f"{name} must be finite, but is inf; give a number")
        if not self.examples / min(self.batch, self.global_batch) <= MOST_OF_A_TRAINING:
            raise ArgumentError(
                f"examples must make at most {MOST_OF_A_TRAINING:.0e} steps, but {self.examples:.3g} examples in "
                f"batches of {min(self.batch, self.global_batch):.3g} make more; set a larger batch or fewer examples"
            )
        for name, seconds in self.arithmetic.items():
            checks.at_least(f"arithmetic of {name}", seconds, 0, "give seconds of a step, such as sampa 0.001")
            if name not in self.methods:
                raise UnknownNameError("method in arithmetic", name, self.methods)
        doubles = sorted({text for text in self.methods if self.methods.count(text) > 1})
        if doubles:
            raise ArgumentError(f"methods must each be named once, but {doubles[0]} is named again; leave it out")
        if not self.methods:
            raise ArgumentError("methods must name at least one method, but is empty; sam is one")
        if self.base + self.slope == 0:
            raise ArgumentError("base or slope must be > 0, but both are 0; give the seconds of a pass")

    @property
    def network(self) -> Network:
        """The links."""
        outward = link(self.between, self.between_latency, self.lanes)
        return Network(
            within=link(self.within, self.within_latency), between=outward, host=self.host, algorithm=self.algorithm
        )

    def setting(self, **changes: Any) -> Setting:
        """The setting of one device, with changes."""
        given: dict[str, Any] = {
            "gradient": Line(self.base, self.slope),
            "forward": Line(self.forward * self.base, self.forward * self.slope),
            "size": self.parameters * self.width,
            "network": self.network,
            "overlap": self.overlap,
            "bucket": self.bucket,
            "update": self.update,
        }
        return Setting(**given | changes)

    @property
    def extra(self) -> float:
        """Seconds that SAMPa's arithmetic takes longer than SAM's."""
        return self.arithmetic.get("sampa", 0.0) - self.arithmetic.get("sam", 0.0)

    def failures(self, devices: int) -> Failures:
        """Failures and checkpoints; by default the interval is Young's."""
        made = Failures(mtbf=3600 * self.mtbf, checkpoint=self.checkpoint, restart=self.restart)
        if self.interval is not None:
            return replace(made, interval=self.interval)
        return replace(made, interval=made.best_interval(devices) or made.between(devices) / 100)


def counts(choice: Choice) -> list[int]:
    """Numbers of devices: powers of two, and the largest, as far as they fill hosts."""
    powers = [1 << n for n in range(choice.devices.bit_length())]
    host = choice.host
    return [n for n in dict.fromkeys([*powers, choice.devices]) if n <= choice.devices and (n < host or n % host == 0)]


def total(choice: Choice) -> int:
    """The number of parts of the study after which ``tick`` is called."""
    return 2 * len(choice.methods) * len(counts(choice))


def study(choice: Choice, tick: Callable[[], None] | None = None) -> Scaling:
    """Run the study; the same choice gives the same record.

    Args:
        choice: The user's choices.
        tick: Called after each of the :func:`total` parts.
    """
    points = []
    for one in [contestant(text) for text in choice.methods]:
        for kept in get_args(Kept):
            for devices in counts(choice):
                if devices % one.probe == 0:
                    points.append(_point(choice, one, kept, devices))
                if tick is not None:
                    tick()
    return Scaling(
        settings=_settings(choice),
        base=choice.base,
        examples=choice.examples,
        points=points,
        pair=_pair(choice),
        bases=_bases(choice),
        marks=[Mark(title=m.title, bandwidth=m.bandwidth, source=m.source) for m in map(LINKS.__getitem__, PAIRED)],
        versions={"lowland": lowland.__version__, "simpy": version("simpy")},
    )


def _point(choice: Choice, contestant: Contestant, kept: Kept, devices: int) -> Point:
    """One method on one mesh."""
    probe, data = contestant.probe, devices // contestant.probe
    batch = {"per_device": choice.batch} if kept == "per device" else {"batch": choice.global_batch}
    arithmetic = choice.arithmetic.get(contestant.text, 0.0)
    mesh = choice.setting(probe=probe, data=data, arithmetic=arithmetic, **batch)
    ideal = predict(contestant.steps, mesh)
    noise = Noise(sigma=choice.sigma, slow=choice.slow)
    times = step_times(contestant.steps, mesh, contestant.simulated(choice.steps), noise=noise, seed=choice.seed)
    failures = choice.failures(devices)
    count = max(round(choice.examples / mesh.examples), 1)
    part = min(count, PARTS * steps_between(times, count, failures))
    training = train(times, part, failures, devices, seed=choice.seed)
    one = predict(contestant.alone, choice.setting(per_device=mesh.local, arithmetic=arithmetic))
    return Point(
        method=contestant.text,
        kept=kept,
        devices=devices,
        probe=probe,
        data=data,
        examples=mesh.examples,
        compute=ideal.compute,
        exchange=ideal.exchange,
        rest=ideal.arithmetic + ideal.update,
        sent=ideal.sent,
        simulated=float(times.mean()),
        error=float(times.std(ddof=1)) / len(times) ** 0.5,
        alone=mesh.local / one.total,
        hours=training.seconds / 3600 * count / part,
        failures=round(training.failures * count / part),
        interval=failures.interval if math.isfinite(failures.interval) else None,
    )


def _pair(choice: Choice) -> Pair:
    """SAMPa on two devices, whose link has the latency within a host."""
    batches, bandwidths = (_spaced(*ends) for ends in (BATCHES, BANDWIDTHS))
    asks, over_data, over_one = contestant("sampa"), [], []
    arithmetic = choice.arithmetic.get("sam", 0.0)
    for bandwidth in bandwidths:
        network = flat(Link(choice.within_latency, bandwidth), choice.algorithm)
        settings = [choice.setting(data=2, batch=batch, network=network, arithmetic=arithmetic) for batch in batches]
        own = [predict(asks.steps, meshes(s)[2]).total + choice.extra for s in settings]
        over_data.append([1 + advantage(s, "data", choice.extra) / t for s, t in zip(settings, own, strict=True)])
        over_one.append([1 + advantage(s, "one", choice.extra) / t for s, t in zip(settings, own, strict=True)])
    return Pair(batches=batches, bandwidths=bandwidths, over_data=over_data, over_one=over_one)


def _bases(choice: Choice) -> list[Base]:
    """The critical base of a pass by devices, for links between hosts."""
    found = []
    devices = [n for n in counts(choice) if n % 2 == 0]  # SAMPa has two groups
    for name in dict.fromkeys([choice.between, *OUTWARD]):
        lanes = choice.lanes if name == choice.between else 1
        outward = link(name, choice.between_latency, lanes)
        network = replace(choice.network, between=outward)
        settings = [choice.setting(data=n, per_device=choice.batch, network=network) for n in devices]
        bases = [critical_base(s, "data", choice.extra) for s in settings]
        title = LINKS[name].title if name in LINKS else f"{name} GB/s"
        found.append(Base(link=f"{lanes} × {title}" if lanes > 1 else title, devices=devices, bases=bases))
    return found


def _spaced(low: float, high: float) -> list[float]:
    """Numbers whose logarithms are evenly spaced."""
    return [low * (high / low) ** (n / (GRID - 1)) for n in range(GRID)]


def _settings(choice: Choice) -> dict[str, str]:
    """What was chosen, in words."""
    within, outward = choice.network.within, choice.network.between
    hours = "none" if math.isinf(choice.mtbf) else f"every {choice.mtbf:,.6g} h on each device"
    each = "Young's interval" if choice.interval is None else f"every {choice.interval:,.6g} s"
    return {
        "pass": f"{1e3 * choice.base:.4g} ms + {1e3 * choice.slope:.4g} ms an example, of which {choice.forward:.3g} "
        "are forward",
        "gradient": f"{choice.parameters:,.0f} parameters of {choice.width} bytes",
        "batch per device": f"{choice.batch:,.6g}",
        "global batch": f"{choice.global_batch:,.6g}",
        "within a host": f"{choice.host} devices, {within.bandwidth / 1e9:,.4g} GB/s, {1e6 * within.latency:.4g} µs",
        "between hosts": f"{outward.bandwidth / 1e9:,.4g} GB/s a host, {1e6 * outward.latency:.4g} µs",
        "all-reduce": choice.algorithm,
        "overlap": f"{choice.overlap:.3g} of a backward, messages of {choice.bucket / 2**20:.4g} MiB",
        "arithmetic": ", ".join(f"{name} {1e3 * s:.4g} ms" for name, s in choice.arithmetic.items()) or "none",
        "stragglers": f"sigma {choice.sigma:.3g}" + (f", one device × {choice.slow:.3g}" if choice.slow > 1 else ""),
        "failures": hours,
        "checkpoints": f"{each}, {choice.checkpoint:.4g} s; restarts {choice.restart:.4g} s",
        "training": f"{choice.examples:,.0f} examples",
        "simulated": f"{choice.steps} steps of each method and mesh, seed {choice.seed}; of methods whose steps "
        f"differ, whole repetitions of {STEPS} steps",
    }
