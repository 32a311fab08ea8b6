from __future__ import annotations

import time
from dataclasses import replace
from statistics import NormalDist
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lowland.core.errors import ArgumentError
from lowland.methods import make
from lowland.planner.asks import Pass, Step, read
from lowland.planner.costs import REQUIRED
from lowland.planner.ideal import predict, step_time
from lowland.planner.line import Line
from lowland.planner.links import Link, Network, flat
from lowland.planner.setting import Setting
from lowland.planner.simulation.noise import Noise, expected_slowest
from lowland.planner.simulation.steps import step_times

KEYS = (
    "plain", "sam", "sam:ascent_gradient=local", "sampa", "looksam", "micro-sam", "micro-sam:m=3", "async-sam",
    "async-sam:tau=0", "sam-on", "k-sam", "esam", "late", "sl-sam",
)  # fmt: skip
HOSTS = Network(within=Link(2e-5, 5e9), between=Link(7e-5, 2e9), host=4, algorithm="halving")
BASE: dict[str, Any] = {
    "gradient": Line(0.02, 0.003), "forward": Line(0.005, 0.001), "size": 4e7, "network": flat(Link(3e-5, 1e9)),
    "batch": 96, "overlap": 0.7, "bucket": 1e7, "arithmetic": 0.004, "update": 0.002,
}  # fmt: skip
MESHES = [(1, 1), (1, 4), (2, 1), (2, 2), (3, 1), (4, 8), (2, 300)]


def steps_of(key: str, probe: int) -> tuple[Step, ...]:
    return read(make(key, fill=lambda k: REQUIRED.get(k, {})), width=probe)


@pytest.mark.parametrize("key", KEYS)
@pytest.mark.parametrize(("probe", "data"), MESHES)
def test_without_noise_the_events_give_the_closed_form(key: str, probe: int, data: int) -> None:
    steps = steps_of(key, probe)
    made = [Setting(**BASE, probe=probe, data=data)]
    made += [replace(made[0], overlap=0.0, bucket=np.inf), replace(made[0], overlap=1.0)]
    if probe * data % 4 == 0:
        made += [replace(made[0], network=HOSTS), replace(made[0], network=HOSTS, inner="data")]
    for setting in made:
        simulated = step_times(steps, setting, len(steps))
        one_by_one = [step_time(step, setting).total for step in steps]
        assert simulated == pytest.approx(one_by_one, rel=1e-9)
        assert simulated.mean() == pytest.approx(predict(steps, setting).total, rel=1e-9)


@st.composite
def plans(draw: Any) -> Step:
    """A step of random asks; the passes of an ask are all of the same parameters, as a mesh wants it."""
    asks = []
    for _ in range(draw(st.integers(1, 4))):
        tensors = draw(st.sampled_from([0.0, 0.25, 1.0]))
        sizes = draw(st.lists(st.sampled_from([0.1, 0.5, 1.0]), min_size=1, max_size=5))
        asks.append(tuple(Pass(n, tensors, False, bool(tensors) and draw(st.booleans())) for n in sizes))
    return tuple(asks)


@settings(deadline=None)
@given(plans(), st.sampled_from(MESHES[:6]), st.floats(0, 1), st.sampled_from(["probe", "data"]), st.booleans())
def test_any_plan_has_its_closed_form(
    step: Step, mesh: tuple[int, int], overlap: float, inner: Any, hosts: bool
) -> None:
    base = BASE | {"overlap": overlap, "inner": inner}
    if hosts and mesh[0] * mesh[1] % 4 == 0:
        base["network"] = HOSTS
    setting = Setting(**base, probe=mesh[0], data=mesh[1])
    assert step_times((step,), setting, 3) == pytest.approx(step_time(step, setting).total, rel=1e-9)


@pytest.mark.parametrize("devices", [1, 3, 64, 1000])
def test_stragglers_cost_the_expected_largest_of_log_normal_numbers(devices: int) -> None:
    sigma, count = 0.1, 1000
    setting = Setting(**BASE | {"overlap": 0.0}, data=devices)
    seconds = step_times(steps_of("sam", 1), setting, count, noise=Noise(sigma=sigma), seed=1)
    ideal = predict(steps_of("sam", 1), setting)
    drawn = np.random.default_rng(2).lognormal(-(sigma**2) / 2, sigma, (20_000, devices)).max(1)
    found = (seconds - (ideal.total - ideal.compute)) / ideal.compute
    error = (drawn.var() / len(drawn) + found.var() / count) ** 0.5
    assert abs(found.mean() - drawn.mean()) < 4 * error  # four standard errors: once in 16,000 seeds
    assert abs(drawn.mean() - expected_slowest(sigma, devices)) < 4 * error
    assert error < 0.01


def test_groups_wait_for_each_other_and_unsynchronized_passes_do_not() -> None:
    noise = Noise(sigma=0.2)
    base = BASE | {"overlap": 0.0, "size": 0.0, "network": flat(Link(0.0, 1e9)), "arithmetic": 0.0, "update": 0.0}
    # SAMPa on 2 x 3 devices: the slowest of all six. Its two gradients have the size of SAM's on 3 devices.
    sampa = step_times(steps_of("sampa", 2), Setting(**base, probe=2, data=3), 2000, noise=noise)
    factors = np.stack([noise.draw(rng, (2, 3)) for rng in [np.random.default_rng(0)] for _ in range(2000)])
    assert sampa == pytest.approx(factors.max((1, 2)) * (0.02 + 0.003 * 32), rel=1e-9)
    # mSAM on 2 x 3 devices: pairs wait for each other in every wave, and all wait at the end.
    micro = step_times(steps_of("micro-sam", 2), Setting(**base, probe=2, data=3), 2000, noise=noise)
    waits = factors.max(1).max(1) * 4 * (0.02 + 0.003 * 8)
    assert micro == pytest.approx(waits, rel=1e-9)


def test_a_slow_device_slows_all_down_where_all_wait() -> None:
    setting = Setting(**BASE | {"overlap": 0.0}, data=8)
    ideal = predict(steps_of("sam", 1), setting)
    seconds = step_times(steps_of("sam", 1), setting, 5, noise=Noise(slow=1.5))
    assert seconds == pytest.approx(ideal.total + 0.5 * ideal.compute, rel=1e-9)
    # AsyncSAM on 2 devices: the first one, which is slow, has the larger of the two passes.
    pair = Setting(**BASE | {"overlap": 0.0}, probe=2)
    ideal = predict(steps_of("async-sam", 2), pair)
    seconds = step_times(steps_of("async-sam", 2), pair, 5, noise=Noise(slow=1.5))
    assert seconds == pytest.approx(ideal.total + 0.5 * ideal.compute, rel=1e-9)


def test_a_slow_backward_hides_more() -> None:
    # One step of plain training: a backward of 1 s on the slow device hides half a second of 2 s of messages.
    link = Link(0.0, 1.0)
    setting = Setting(
        gradient=Line(0.75, 0.0), forward=Line(0.25, 0.0), size=2.0, network=flat(link), data=2, batch=2, overlap=0.5,
        bucket=0.5,
    )  # fmt: skip
    assert step_time(steps_of("plain", 1)[0], setting).total == pytest.approx(0.75 + 2.0 - 0.25)
    slow = step_times(steps_of("plain", 1), setting, 1, noise=Noise(slow=2.0))
    assert slow == pytest.approx(1.5 + 2.0 - 0.5)


def test_a_seed_gives_the_same_times() -> None:
    setting = Setting(**BASE, probe=2, data=4)
    first, again = (step_times(steps_of("sampa", 2), setting, 20, noise=Noise(sigma=0.1), seed=5) for _ in range(2))
    other = step_times(steps_of("sampa", 2), setting, 20, noise=Noise(sigma=0.1), seed=6)
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)
    counted: list[None] = []
    step_times(steps_of("sampa", 2), setting, 7, tick=lambda: counted.append(None))
    assert len(counted) == 7


@pytest.mark.slow
def test_ten_thousand_devices_take_a_thousand_steps_in_a_minute() -> None:
    setting = Setting(**BASE, probe=2, data=5000)
    begun = time.process_time()
    seconds = step_times(steps_of("sampa", 2), setting, 1000, noise=Noise(sigma=0.05))
    assert time.process_time() - begun < 60
    ideal = predict(steps_of("sampa", 2), setting)
    assert seconds.mean() > ideal.total


def test_expected_slowest_by_hand() -> None:
    # Of two: E max = 2 Phi(sigma / sqrt 2), because max(x, y) = (x + y + |x - y|) / 2 and E|x - y| is known.
    for sigma in (0.05, 0.3, 1.0):
        assert expected_slowest(sigma, 2) == pytest.approx(2 * NormalDist().cdf(sigma / 2**0.5), rel=1e-10)
        assert expected_slowest(sigma, 1) == pytest.approx(1.0, rel=1e-10)
    assert expected_slowest(0.0, 1000) == 1.0


def test_refusals() -> None:
    setting = Setting(**BASE)
    with pytest.raises(ArgumentError, match="count must be an integer >= 1, but is 0"):
        step_times(steps_of("sam", 1), setting, 0)
    with pytest.raises(ArgumentError, match="steps must have at least one step"):
        step_times((), setting, 1)
    with pytest.raises(ArgumentError, match="sigma must be a number >= 0"):
        Noise(sigma=-1.0)
    with pytest.raises(ArgumentError, match=r"slow must be a number >= 1, but is 0\.5"):
        Noise(slow=0.5)
