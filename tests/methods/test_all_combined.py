"""Radii that change and methods around methods work with every entry of METHODS, bit for bit."""

from __future__ import annotations

import io
from collections.abc import Callable

import pytest
import torch
from conformance import TEXTS, at_radius, engine_of, loss_for, method_of, model_for
from problems import batch, same, sgd, train, weights

import lowland
from lowland.core import schedule

every_method = pytest.mark.parametrize("text", TEXTS.values(), ids=TEXTS)


def engine_with(method: lowland.Method, text: str) -> lowland.Engine:
    model = model_for(text)
    return lowland.Engine(method, model, sgd(model), loss_for(text), seed=3)


@every_method
def test_a_radius_may_change_from_step_to_step(text: str) -> None:
    ramp = schedule.linear(0.0, 0.4, steps=4)
    one = engine_with(at_radius(method_of(text), ramp), text)
    other = engine_with(method_of(text), text)
    for step in range(6):
        other.method = at_radius(method_of(text), ramp.at(step, 0.1))  # by hand
        for engine in (one, other):
            engine.backward(batch(step))
            engine.optimizer.step()
            engine.optimizer.zero_grad()
        assert same(weights(one.model), weights(other.model))
    constant = engine_with(at_radius(method_of(text), 0.4), text)
    train(constant, 6)
    if text != "plain":
        assert not same(weights(one.model), weights(constant.model))


AROUND: dict[str, Callable[[lowland.Method], lowland.Method]] = {
    "late from the start": lambda inner: lowland.Late(inner=inner, start=0),
    "at every step": lambda inner: lowland.Switch(when=schedule.every(1), inner=inner),
    "after nothing": lambda inner: lowland.Switch(when=schedule.after(0), inner=inner, otherwise=lowland.SAMPa()),
    "never otherwise": lambda inner: lowland.Switch(when=schedule.after(99), otherwise=inner),
}


@every_method
@pytest.mark.parametrize("around", AROUND.values(), ids=AROUND)
def test_a_method_alone_inside_another_is_itself(text: str, around: Callable[[lowland.Method], lowland.Method]) -> None:
    one, other = engine_with(around(method_of(text)), text), engine_with(method_of(text), text)
    train(one, 6)
    train(other, 6)
    assert same(weights(one.model), weights(other.model))
    assert one.cost.gradients == other.cost.gradients


@every_method
def test_every_method_takes_turns_and_resumes(text: str) -> None:
    def fresh() -> lowland.Engine:
        method = lowland.Switch(when=schedule.every(2), inner=method_of(text), otherwise=lowland.LookSAM(k=2))
        return engine_with(method, text)

    engine, file = fresh(), io.BytesIO()
    train(engine, 3)
    torch.save([part.state_dict() for part in (engine.model, engine.optimizer, engine)], file)
    train(engine, 5, start=3)

    file.seek(0)
    resumed = fresh()
    for part, state in zip(
        (resumed.model, resumed.optimizer, resumed), torch.load(file, weights_only=True), strict=True
    ):
        part.load_state_dict(state)
    train(resumed, 5, start=3)
    assert same(weights(resumed.model), weights(engine.model))
    alone = engine_of(text)
    train(alone, 8)
    assert not same(weights(engine.model), weights(alone.model))
