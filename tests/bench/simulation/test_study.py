from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from lowland.bench.simulation import study as studies
from lowland.bench.simulation.contestant import contestant
from lowland.bench.simulation.study import Choice, counts, study, total
from lowland.core.errors import ArgumentError
from lowland.methods import make
from lowland.planner.asks import read
from lowland.planner.frontier import advantage, critical_base
from lowland.planner.ideal import predict
from lowland.planner.links import Link, flat
from lowland.report.planner.record import Scaling

SMALL = Choice(devices=16, methods=("sam", "sampa"), steps=20, examples=1e6, global_batch=512)


@pytest.fixture(autouse=True)
def _small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(studies, "GRID", 3)


def test_numbers_of_devices_fill_hosts() -> None:
    assert counts(Choice(devices=24, host=8)) == [1, 2, 4, 8, 16, 24]
    assert counts(Choice(devices=4, host=1)) == [1, 2, 4]
    assert counts(Choice())[-3:] == [4096, 8192, 10_000]


def test_a_study_without_noise_and_failures_is_the_closed_form() -> None:
    ticks: list[None] = []
    choice = replace(SMALL, sigma=0.0, mtbf=float("inf"), interval=1e9, checkpoint=0.0)
    found = study(choice, lambda: ticks.append(None))
    assert len(ticks) == total(choice) == 2 * 2 * 5
    assert [p.devices for p in found.of("sam", "global")] == [1, 2, 4, 8, 16]
    assert [p.devices for p in found.of("sampa", "per device")] == [2, 4, 8, 16]  # it needs two groups
    for point in found.points:
        assert point.simulated == pytest.approx(point.seconds)
        assert point.hours == pytest.approx(round(1e6 / point.examples) * point.seconds / 3600)
        assert point.failures == 0
        assert point.efficiency(1e6) == pytest.approx(point.ideal, rel=1e-3)  # steps are rounded
    sampa = found.of("sampa", "per device")[-1]
    mesh = choice.setting(probe=2, data=8, per_device=64)
    ideal = predict(read(make("sampa"), width=2), mesh)
    assert (sampa.compute, sampa.exchange, sampa.sent) == (ideal.compute, ideal.exchange, ideal.sent)
    assert (sampa.probe, sampa.data, sampa.examples) == (2, 8, 512)
    one = predict(read(make("sampa")), choice.setting(per_device=64))
    assert sampa.ideal == pytest.approx(512 / ideal.total / 16 / (64 / one.total))


def test_the_grid_and_the_bases_are_those_of_the_frontier() -> None:
    found = study(SMALL)
    batch, bandwidth = found.pair.batches[1], found.pair.bandwidths[2]
    assert (batch, bandwidth) == pytest.approx((100.0, 1e12))
    pair = SMALL.setting(data=2, batch=batch, network=flat(Link(5e-6, bandwidth), "halving"))
    own = predict(read(make("sampa"), width=2), replace(pair, probe=2, data=1)).total
    assert found.pair.over_data[2][1] == pytest.approx(1 + advantage(pair) / own)
    assert found.pair.over_one[2][1] == pytest.approx(predict(read(make("sam")), replace(pair, data=1)).total / own)
    assert [base.link for base in found.bases] == [
        "8 × InfiniBand NDR", "Ethernet 10G", "Ethernet 100G", "InfiniBand HDR",
    ]  # fmt: skip
    assert found.bases[0].devices == [2, 4, 8, 16]
    assert found.bases[0].bases[-1] == critical_base(SMALL.setting(data=16, per_device=64))


def test_arithmetic_counts_against_its_method() -> None:
    free, found = study(SMALL), study(replace(SMALL, arithmetic={"sam": 0.001, "sampa": 0.005}))
    assert [p.rest for p in found.points] == [0.001 if p.method == "sam" else 0.005 for p in found.points]
    assert found.bases[0].bases == pytest.approx([base + 0.004 for base in free.bases[0].bases])
    one, batch = found.pair, found.pair.batches[1]
    pair = SMALL.setting(data=2, batch=batch, network=flat(Link(5e-6, one.bandwidths[2]), "halving"))
    sam = predict(read(make("sam")), pair).total + 0.001
    sampa = predict(read(make("sampa"), width=2), replace(pair, probe=2, data=1)).total + 0.005
    assert one.over_data[2][1] == pytest.approx(sam / sampa)


def test_stragglers_and_failures_cost_time_and_a_seed_repeats_them() -> None:
    choice = replace(SMALL, mtbf=0.5, restart=1.0, checkpoint=0.5, examples=1e7)
    found, again = study(choice), study(choice)
    assert found.text() == again.text()
    assert study(replace(choice, seed=1)).text() != found.text()
    for point in found.of("sam", "global"):
        assert point.simulated > point.seconds - 4 * point.error
        assert point.hours > 1e7 / point.examples * point.seconds / 3600
        assert point.interval == pytest.approx((2 * 0.5 * 1800 / point.devices) ** 0.5)
    assert found.of("sam", "global")[-1].failures > 0
    assert found.settings["failures"] == "every 0.5 h on each device"


def test_a_long_training_is_like_its_beginning(monkeypatch: pytest.MonkeyPatch) -> None:
    choice = replace(SMALL, sigma=0.0, mtbf=10.0, restart=1.0, checkpoint=0.5, examples=1e8, methods=("sam",))
    whole = study(choice).of("sam", "global")
    monkeypatch.setattr(studies, "PARTS", 300)
    for one, other in zip(whole, study(choice).of("sam", "global"), strict=True):
        assert other.hours == pytest.approx(one.hours, rel=0.01)
        assert other.failures == pytest.approx(one.failures, rel=0.5, abs=5)
    free = study(replace(choice, mtbf=float("inf"), checkpoint=0.0)).of("sam", "global")
    assert [p.interval for p in free] == [None] * 5


def test_a_record_is_read_back(tmp_path: Any) -> None:
    found = study(SMALL)
    path = tmp_path / "simulation.json"
    path.write_text(found.text(), encoding="utf-8")
    assert Scaling.read(path) == found


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"devices": 1}, "devices must be an integer >= 2, but is 1"),
        ({"devices": 200_000}, "devices must be at most 100000, but are 200000"),
        ({"host": 3}, "host must be a power of two that divides the devices, but is 3"),
        ({"devices": 12}, "host must be a power of two that divides the devices, but is 8, and there are 12"),
        ({"global_batch": 8}, "batches must have examples for every device"),
        ({"batch": 0}, "batches must have examples for every device"),
        ({"lanes": 0}, "lanes must be an integer >= 1"),
        ({"forward": 2}, r"forward must be in \[0, 1\], but is 2"),
        ({"base": -1}, "base must be a number >= 0"),
        ({"base": 0, "slope": 0}, "base or slope must be > 0"),
        ({"mtbf": 0}, "mtbf must be > 0, but is 0"),
        ({"methods": ()}, "methods must name at least one method"),
        ({"arithmetic": {"sam": -1.0}}, "arithmetic of sam must be a number >= 0"),
        ({"arithmetic": {"same": 1.0}}, "unknown method in arithmetic 'same': did you mean 'sam'"),
        ({"steps": 1}, "steps must be an integer >= 2, but is 1"),
        ({"steps": 10**12}, "steps must be at most 1000000, but are 1000000000000"),
        ({"interval": 0}, "interval must be > 0, but is 0"),
        ({"sigma": 30}, r"sigma must be in \[0, 3\.0\], but is 30"),
        ({"examples": float("inf")}, "examples must be finite, but is inf"),
        ({"parameters": float("inf")}, "parameters must be finite, but is inf"),
        ({"batch": float("inf")}, "batches must have examples for every device"),
        ({"global_batch": float("inf")}, "batches must have examples for every device"),
        ({"seed": -1}, "seed must be an integer >= 0, but is -1"),
        ({"methods": ("sam", "sam")}, "methods must each be named once, but sam is named again"),
    ],
)
def test_refusals(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ArgumentError, match=message):
        replace(SMALL, **changes)


@pytest.mark.parametrize("steps", [2, 50, 130])
def test_the_steps_that_are_simulated_are_those_of_the_training(steps: int) -> None:
    choice = replace(
        SMALL, methods=("late:start=0.5", "looksam", "sam"), steps=steps, sigma=0.0, mtbf=float("inf"), checkpoint=0.0
    )
    for point in study(choice).points:
        assert point.simulated == pytest.approx(point.seconds), point.method


def test_methods_ask_for_the_fractions_that_they_name() -> None:
    def fractions(text: str) -> set[float]:
        return {p.examples for step in contestant(text).steps for ask in step for p in ask}

    assert fractions("k-sam:k=0.1") == {0.1, 1.0}
    assert fractions("micro-sam:m=8") == {0.125}
    assert fractions("async-sam:share=0.1") == {0.1, 1.0}
    with pytest.raises(ArgumentError, match=r"k-sam:k=16 asks for a number of examples .* give a fraction, such as"):
        study(replace(SMALL, methods=("k-sam:k=16",)))


def test_an_odd_number_of_devices_has_no_groups_of_sampa() -> None:
    found = study(Choice(devices=3, host=1, methods=("sam",), steps=2, examples=1e6, global_batch=512))
    assert next(base.devices for base in found.bases) == [2]


@pytest.mark.parametrize("changes", [{"batch": 1e-300}, {"examples": 1e300}])
def test_a_training_has_steps_that_can_be_counted(changes: dict[str, Any]) -> None:
    with pytest.raises(ArgumentError, match=r"examples must make at most 1e\+15 steps"):
        replace(SMALL, **changes)


def test_what_takes_too_long_between_failures_is_named() -> None:
    with pytest.raises(ArgumentError, match="raise mtbf, or shorten checkpoint and restart"):
        study(replace(SMALL, methods=("sam",), mtbf=1.0, restart=1000.0))
