from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lowland.core.errors import ArgumentError
from lowland.methods import make
from lowland.planner.asks import read
from lowland.planner.frontier import Quantity, Rival, advantage, critical, critical_base, meshes
from lowland.planner.ideal import predict
from lowland.planner.line import Line
from lowland.planner.links import Link, Network
from lowland.planner.setting import Setting

SAM, SAMPA = read(make("sam")), read(make("sampa"), width=2)


@st.composite
def meshes_of(draw: Any, devices: tuple[int, ...] = (2, 4, 8, 16, 64), overlap: bool = True) -> Setting:
    forward = Line(draw(st.floats(0, 0.05)), draw(st.floats(1e-5, 1e-2)))
    gradient = Line(forward.base + draw(st.floats(0, 0.05)), forward.slope + draw(st.floats(1e-5, 1e-2)))
    links = [Link(draw(st.floats(0, 1e-3)), draw(st.floats(1e8, 1e11))) for _ in range(2)]
    host = draw(st.sampled_from([1, 2, 8]))
    algorithm = draw(st.sampled_from(["ring", "tree", "halving"]))
    return Setting(
        gradient=gradient,
        forward=forward,
        size=draw(st.floats(1e5, 1e9)),
        network=Network(within=links[0], between=links[1], host=host, algorithm=algorithm),
        data=draw(st.sampled_from(devices)),
        batch=draw(st.floats(8, 4096)),
        overlap=draw(st.floats(0, 1)) if overlap else 0.0,
        bucket=draw(st.sampled_from([float("inf"), 1e6, 2.5e7])),
    )


@settings(deadline=None)
@given(meshes_of())
def test_the_difference_is_that_of_the_predictions(setting: Setting) -> None:
    one, data, sampa = meshes(setting)
    own = predict(SAMPA, sampa).total
    rivals = {"data": predict(SAM, data).total, "one": predict(SAM, one).total}
    assert advantage(setting, "data") == pytest.approx(rivals["data"] - own, abs=1e-9 * rivals["data"])
    assert advantage(setting, "one") == pytest.approx(rivals["one"] - own, abs=1e-9 * max(rivals["one"], own))
    assert advantage(setting, extra=0.5) == pytest.approx(advantage(setting) - 0.5)
    local = replace(setting, batch=None, per_device=setting.local)
    assert advantage(local) == pytest.approx(advantage(setting), rel=1e-9, abs=1e-12)


@settings(deadline=None)
@given(meshes_of(), st.sampled_from(["data", "one"]))
def test_at_the_critical_base_both_take_equally_long(setting: Setting, rival: Rival) -> None:
    base = critical_base(setting, rival, 0.01)
    moved = base - setting.gradient.base
    lines = [Line(line.base + moved, line.slope) for line in (setting.gradient, setting.forward)]
    if lines[1].base >= 0:  # times are never below 0
        there = replace(setting, gradient=lines[0], forward=lines[1])
        assert advantage(there, rival, 0.01) == pytest.approx(0.0, abs=1e-9)


@settings(deadline=None)
@given(meshes_of(devices=(2,)))
def test_on_two_devices_sampa_is_never_slower_than_data_parallelism(setting: Setting) -> None:
    assert advantage(setting) > -1e-12


@settings(deadline=None)
@given(meshes_of(overlap=False))
def test_without_overlap_the_batch_drops_out(setting: Setting) -> None:
    assert advantage(setting) == pytest.approx(advantage(replace(setting, batch=3.0)), rel=1e-6, abs=1e-9)


def test_two_devices_by_hand() -> None:
    lines: dict[str, Any] = {"gradient": Line(0.25, 0.5), "forward": Line(0.125, 0.125), "size": 64.0}
    link = Link(0.5, 16.0)
    pair = Setting(**lines, network=Network(within=link, between=link), data=2, batch=4)
    assert advantage(pair) == 0.25 + 3 * 0.5 + 64 / 16
    assert advantage(pair, "one") == (0.25 + 0.5 * 4) - (0.5 + 64 / 16)
    # a + b B = x
    assert critical(pair, "batch", "one") == pytest.approx([(0.5 + 4 - 0.25) / 0.5])
    assert critical(pair, "batch", "one", extra=1.0) == pytest.approx([(0.5 + 4 - 0.25 + 1.0) / 0.5])
    # Hosts of one device are connected by the link between hosts.
    assert critical(pair, "bandwidth", "one", link="between") == pytest.approx([64 / (2.25 - 0.5)])
    assert critical(pair, "bandwidth", "one") == []
    assert critical(pair, "latency", "one", extra=-3.0, link="between") == pytest.approx([2.25 + 3 - 4])
    assert critical(pair, "size", "one") == pytest.approx([(2.25 - 0.5) * 16])
    assert critical(pair, "bandwidth") == critical(pair, "batch") == critical(pair, "size") == []


def changed(setting: Setting, quantity: str, value: float, link: str) -> Setting:
    if quantity in ("batch", "size"):
        return replace(setting, **{quantity: value})
    network = setting.network
    new = replace(getattr(network, link), **{quantity: value})
    return replace(setting, network=replace(network, **{link: new}))


@settings(deadline=None)
@given(
    meshes_of(devices=(4, 8, 64)),
    st.sampled_from(["batch", "latency", "bandwidth"]),
    st.sampled_from(["within", "between"]),
    st.sampled_from(["data", "one"]),
    st.floats(-0.1, 0.1),
)
def test_the_sign_changes_at_the_critical_values_and_nowhere_else(
    setting: Setting, quantity: Quantity, link: Any, rival: Rival, extra: float
) -> None:
    def at(value: float) -> float:
        return advantage(changed(setting, quantity, value, link), rival, extra)

    found = critical(setting, quantity, rival, extra=extra, link=link)
    scale = {"batch": 10.0, "latency": 1e-4, "bandwidth": 1e9}[quantity]
    edges = [0.0, *found, max([*found, scale]) * 100]

    def rounding(value: float) -> float:
        return 1e-9 * (1 + predict(SAM, meshes(changed(setting, quantity, value, link))[0]).total)

    for value in found:
        moved = abs(at(value * 1.001) - at(value * 0.999))
        assert abs(at(value)) <= 1e-6 * moved + rounding(value)
    for low, high in pairwise(edges):
        inside = [(at(x), rounding(x)) for x in (low + (high - low) * t for t in (0.02, 0.3, 0.6, 0.98))]
        assert all(x > -least for x, least in inside) or all(x < least for x, least in inside)
    signs = [at((low + high) / 2) for low, high in pairwise(edges) if high - low > 1e-3 * high]
    if len(signs) == len(edges) - 1 and all(abs(x) > 1e-9 for x in signs):
        assert all((x > 0) != (y > 0) for x, y in pairwise(signs))


def test_refusals() -> None:
    link = Link(0.0, 1.0)
    lines: dict[str, Any] = {"gradient": Line(2.0, 1.0), "forward": Line(1.0, 0.5), "size": 1.0}
    good = Setting(**lines, network=Network(within=link, between=link), data=4, batch=4)
    for wrong in (replace(good, data=3), replace(good, probe=2)):
        with pytest.raises(ArgumentError, match="setting must have probe=1 and an even number of devices"):
            advantage(wrong)
    with pytest.raises(ArgumentError, match="gradient must take longer than forward"):
        critical(replace(good, forward=Line(3.0, 0.5)), "batch")
    with pytest.raises(ArgumentError, match="bucket must be infinite where the size varies"):
        critical(replace(good, bucket=0.5), "size")
    with pytest.raises(ArgumentError, match="quantity must be one of"):
        critical(good, "devices")  # type: ignore[arg-type]
    with pytest.raises(ArgumentError, match="rival must be one of"):
        advantage(good, "two")  # type: ignore[arg-type]
