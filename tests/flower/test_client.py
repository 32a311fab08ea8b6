"""A client's local training is the engine's, bit for bit, with memory that is kept or begins anew."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from flwr.app import ArrayRecord, ConfigRecord, Context, RecordDict
from flwr.common.serde import recorddict_from_proto, recorddict_to_proto
from torch import nn

import lowland
from flower.federation import app, batches, context, first_arrays, loss_fn, make, message, net, same, sgd
from lowland.core.errors import ArgumentError, StateError, UsageError
from lowland.integrations.flower import Local, arrays_of, client_app, kept, load_arrays
from lowland.integrations.flower.client import run_round
from lowland.methods import make as make_method

METHODS = ["plain", "sam", "sampa", "looksam:k=3", "momentum-sam:rho=0.1", "vasso", "friendly-sam"]
ROUNDS = 3


def by_hand(
    method: str, rounds: list[ArrayRecord], memory: str, client: int = 0
) -> tuple[list[ArrayRecord], list[float], list[float]]:
    """The engine in a loop: the arrays after each round, and the round's loss and gradients."""
    model = net()
    optimizer = sgd(model)
    engine = lowland.Engine(make_method(method), model, optimizer, loss_fn)
    results, losses, gradients = [], [], []
    for number, arrays in enumerate(rounds, 1):
        if memory == "anew":
            optimizer = sgd(model)
            engine = lowland.Engine(make_method(method), model, optimizer, loss_fn)
        load_arrays(model, arrays)
        before, found = engine.cost.gradients, []
        torch.default_generator.manual_seed((client << 32) + number)
        for batch in batches(client, number):
            found.append(engine.backward(batch))
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()
        results.append(arrays_of(model))
        losses.append(float(torch.stack(found).mean()))
        gradients.append(engine.cost.gradients - before)
    return results, losses, gradients


def replies(place: Context, rounds: list[ArrayRecord], client: int = 0) -> list[Any]:
    return [app()(message(arrays, number, client), place).content for number, arrays in enumerate(rounds, 1)]


def jumping() -> list[ArrayRecord]:
    """The server's weights, which jump from round to round."""
    return [arrays_of(net(seed)) for seed in range(ROUNDS)]


@pytest.mark.parametrize("memory", ["anew", "kept"])
@pytest.mark.parametrize("method", METHODS)
def test_local_training_is_the_engine_s(method: str, memory: str) -> None:
    given = replies(context(1, method=method, memory=memory), jumping(), client=1)
    results, losses, gradients = by_hand(method, jumping(), memory, client=1)
    for found, arrays, loss, count in zip(given, results, losses, gradients, strict=True):
        assert same(found["arrays"], arrays)
        metrics = found["metrics"]
        assert metrics["loss"] == pytest.approx(loss, rel=1e-12)
        assert (metrics["gradients"], metrics["steps"], metrics["num-examples"]) == (count, 4, 10)


@pytest.mark.parametrize("method", METHODS)
def test_what_is_kept_matters_from_the_second_round_on(method: str) -> None:
    """With momentum in every optimizer, so that plain training keeps something, too."""
    anew, kept_ = (replies(context(0, method=method, memory=m), jumping()) for m in ("anew", "kept"))
    assert same(anew[0]["arrays"], kept_[0]["arrays"])
    assert not same(anew[1]["arrays"], kept_[1]["arrays"])


def test_a_round_of_sampa_begins_cold_where_memory_begins_anew() -> None:
    """Then its first step is the plain one; with the old gradient it is another one."""
    found: dict[tuple[str, str], Any] = {}

    def one_step(place: Any, config: Any) -> Local:
        model = net()
        given = {"optimizer": torch.optim.SGD(model.parameters(), lr=0.1), "loss_fn": loss_fn, "examples": 6}
        method, memory = make_method(place.run_config["method"]), place.run_config["memory"]
        kept_batches = batches(0, config["server-round"])[: 4 if config["server-round"] == 1 else 1]
        model.layers[3].p = 0.0
        return Local(method=method, model=model, batches=kept_batches, memory=memory, **given)

    for method, memory in (("plain", "anew"), ("sampa", "anew"), ("sampa", "kept")):
        place = context(0, method=method, memory=memory)
        for number in (1, 2):
            found[method, memory] = client_app(one_step)(message(first_arrays(), number), place).content["arrays"]
    plain, cold, stale = (arrays["layers.0.weight"].numpy() for arrays in found.values())
    assert abs(cold - plain).max() < 1e-14
    assert abs(stale - plain).max() > 1e-4


def test_state_in_a_folder_resumes_bit_for_bit_in_a_new_context(tmp_path: Path) -> None:
    def in_folder(place: Any, config: Any) -> Local:
        model = net()
        given = {"optimizer": sgd(model), "loss_fn": loss_fn, "examples": 24, "clip": 1.0}
        given |= {"batches": batches(0, config["server-round"]), "memory": "kept", "folder": tmp_path / "client"}
        return Local(method=lowland.SAMPa(), model=model, **given)

    expected, _, _ = by_hand("sampa", jumping(), "kept")
    for number, (arrays, result) in enumerate(zip(jumping(), expected, strict=True), 1):
        place = context(0)
        found = client_app(in_folder)(message(arrays, number), place)
        assert same(found.content["arrays"], result)
        assert not place.state
    assert [path.name for path in (tmp_path / "client").iterdir()] == ["lowland_0.pt"]


def test_a_round_of_nan_keeps_what_was_kept_before() -> None:
    place = context(0, memory="kept", fails="nan@0@2")
    app()(message(first_arrays(), 1), place)
    before = place.state[kept.RECORD]["state"]
    spoiled = app()(message(first_arrays(), 2), place).content
    assert not math.isfinite(spoiled["metrics"]["loss"])
    assert place.state[kept.RECORD]["state"] == before
    clean = context(0, memory="kept")
    app()(message(first_arrays(), 1), clean)
    results = [app()(message(first_arrays(), 3), each).content["arrays"] for each in (place, clean)]
    assert same(*results)


def test_replies_and_states_pass_flower_s_serialization() -> None:
    place = context(0, memory="kept")
    content = app()(message(first_arrays(), 1), place).content
    sent = recorddict_from_proto(recorddict_to_proto(content))
    assert same(sent["arrays"], content["arrays"])
    assert dict(sent["metrics"]) == dict(content["metrics"])
    state = recorddict_from_proto(recorddict_to_proto(place.state))
    again = context(0, memory="kept")
    again.state = state
    results = [app()(message(first_arrays(), 2), each).content["arrays"] for each in (place, again)]
    assert same(*results)


def test_kept_state_that_does_not_fit_is_refused(tmp_path: Path) -> None:
    place = context(0, method="sampa", memory="kept")
    app()(message(first_arrays(), 1), place)
    place.run_config["method"] = "looksam"
    with pytest.raises(StateError, match="same method"):
        app()(message(first_arrays(), 2), place)
    model = net()
    groups = [{"params": list(m.parameters())} for m in (model.layers[0], model.layers[1], model.layers[4])]
    optimizer = torch.optim.SGD(groups, lr=0.1, momentum=0.9)
    engine = lowland.Engine(lowland.SAMPa(), model, optimizer, loss_fn)
    with pytest.raises(StateError, match=r"groups of \[2, 2, 2\] parameters, but has \[6\]"):
        kept.load(engine, optimizer, place, None)
    place.state[kept.RECORD] = ConfigRecord({"state": b"torn"})
    with pytest.raises(StateError, match="damaged"):
        kept.load(engine, optimizer, place, None)
    (tmp_path / "lowland_0.pt").write_bytes(b"torn")
    with pytest.raises(StateError, match="damaged"):
        kept.load(engine, optimizer, place, tmp_path)


def test_the_optimizer_s_settings_are_those_of_the_round() -> None:
    model = net()
    optimizer = sgd(model)
    engine = lowland.Engine(lowland.SAM(), model, optimizer, loss_fn)
    engine.backward(batches(0, 1)[0])
    optimizer.step()
    place = context(0)
    kept.save(engine, optimizer, place, None)
    later = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.5)
    assert kept.load(lowland.Engine(lowland.SAM(), model, later, loss_fn), later, place, None)
    assert (later.param_groups[0]["lr"], later.param_groups[0]["momentum"]) == (0.01, 0.5)
    for param in model.parameters():
        assert torch.equal(later.state[param]["momentum_buffer"], optimizer.state[param]["momentum_buffer"])


def test_global_random_numbers_stay() -> None:
    place = context(0)
    local = make(place, {"server-round": 1})
    before = torch.get_rng_state()
    run_round(local, place, {"server-round": 1})
    assert torch.equal(torch.get_rng_state(), before)


def test_methods_that_go_by_the_progress_get_that_of_all_rounds() -> None:
    run = {"method": "late:start=0.5,inner=sam"}
    found = [app()(message(first_arrays(), n, **{"num-rounds": 4}), context(0, **run)).content for n in (1, 2, 3, 4)]
    assert [r["metrics"]["gradients"] for r in found] == [4, 4, 8, 8]
    with pytest.raises(UsageError, match="num-rounds"):
        app()(message(first_arrays(), 1), context(0, **run))


def test_evaluation() -> None:
    def measured(place: Any, config: Any) -> Local:
        local = make(place, config)
        local.evaluate = lambda model: {"sum": float(model.layers[0].bias.detach().sum()), "num-examples": 7}
        return local

    asked = message(first_arrays(), 1, kind="evaluate")
    found = client_app(measured)(asked, context(0)).content["metrics"]
    assert dict(found) == {"sum": float(net().layers[0].bias.detach().sum()), "num-examples": 7}
    with pytest.raises(UsageError, match=r"fraction_evaluate=0\.0"):
        app()(asked, context(0))


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "memory": ({"memory": "some"}, "memory must be one of"),
    "examples": ({"examples": 0}, "examples must be an integer >= 1"),
    "seed": ({"seed": -1}, "seed must be an integer >= 0"),
    "clip": ({"clip": 0}, "clip must be a number > 0"),
    "folder": ({"folder": "x"}, "folder must be None where nothing is kept"),
    "options": ({"options": {"scaler": None}}, "options must be some of mesh"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_arguments_are_checked(name: str) -> None:
    changes, text = REFUSED[name]
    model = net()
    given = {"optimizer": sgd(model), "loss_fn": loss_fn, "batches": batches(0, 1), "examples": 1}
    with pytest.raises(ArgumentError, match=text):
        Local(method=lowland.SAM(), model=model, **(given | changes))


def test_trainings_that_cannot_be_right_are_refused() -> None:
    model = net()
    used = sgd(model)
    loss_fn(model, batches(0, 1)[0]).mean().backward()
    used.step()
    given: dict[str, Any] = {"method": lowland.SAM(), "model": model, "loss_fn": loss_fn, "examples": 1}
    with pytest.raises(ArgumentError, match="optimizer must be new in every round"):
        Local(optimizer=used, batches=[], **given)
    with pytest.raises(ArgumentError, match="at least one batch"):
        client_app(lambda *_: Local(optimizer=sgd(model), batches=[], **given))(message(first_arrays(), 1), context(0))
    with pytest.raises(ArgumentError, match="make must return a Local, but returned a Net"):
        client_app(lambda *_: model)(message(first_arrays(), 1), context(0))
    two = message(first_arrays(), 1)
    two.content = RecordDict({"a": first_arrays(), "b": first_arrays()})
    with pytest.raises(UsageError, match="sends 2"):
        client_app(lambda *_: Local(optimizer=sgd(model), batches=[], **given))(two, context(0))
