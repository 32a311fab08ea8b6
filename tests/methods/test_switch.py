"""Two methods by turns: what each remembers, and what a state, an overflow or a schedule does to it.

Float64 throughout. What is equal in exact arithmetic agrees here bit for bit: Switch only decides.
"""

from __future__ import annotations

import dataclasses
import io
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from reference import drive
from reference.attacks import overflow
from reference.cases import BASES, LRS, MOMENTUM, PROBLEM, SAME, path_of, probes, some
from reference.drive import Run, assert_differ, assert_same, trajectory

from lowland import AESAM, RST, SAM, VSAM, BiSAM, Late, LookSAM, MomentumSAM, Plain, Renormalized, SAMPa, Switch
from lowland.core.errors import ArgumentError, StateError, UsageError
from lowland.core.schedule import When, after, every

LOOK = LookSAM(rho=0.3, k=3, alpha=0.6)
WINDOW = VSAM(rho=0.2, window=3, blocks=2, a1=0.9)

SWITCHES = {
    "sam sometimes": Switch(when=every(2), inner=SAM(rho=0.3)),
    "sam then sampa": Switch(when=after(3), inner=SAMPa(rho=0.2), otherwise=SAM(rho=0.3)),
    "sampa by turns": Switch(when=every(2), inner=SAMPa(rho=0.2), otherwise=SAMPa(rho=0.3, lam=0.0)),
    "looksam or vsam": Switch(when=every(2), inner=LOOK, otherwise=WINDOW),
    "coins and statistics": Switch(when=every(3), inner=RST(rho=0.2), otherwise=AESAM(rho=0.2, total=10)),
    "twice ae-sam": Switch(when=every(2), inner=AESAM(rho=0.2, total=10), otherwise=AESAM(rho=0.2, total=10)),
    "nested": Switch(when=every(2), inner=Switch(when=every(4), inner=LOOK, otherwise=WINDOW), otherwise=LOOK),
    "late inside": Switch(when=every(2), inner=Late(inner=LOOK, start=4), otherwise=Renormalized(inner=WINDOW)),
}
every_switch = pytest.mark.parametrize("method", SWITCHES.values(), ids=SWITCHES)


@pytest.mark.parametrize("base", BASES)
@pytest.mark.parametrize("k", [1, 3])
def test_sam_every_k_steps_is_looksam_without_reuse(k, base):
    path = path_of(Switch(when=every(k), inner=SAM(rho=0.3)), some(), optimizer=BASES[base])
    assert_same(path, path_of(LookSAM(rho=0.3, k=k, alpha=0.0), some(), optimizer=BASES[base]), SAME)


def test_an_offset_moves_the_steps():
    run = Run(PROBLEM, PROBLEM.weights(1), Switch(when=every(4, offset=1), inner=SAM()), MOMENTUM)
    assert list(probes(run, some())) == [1, 2, 1, 1, 1, 2, 1, 1, 1, 2]


@pytest.mark.parametrize("method", [SAM(rho=0.3), LOOK, WINDOW, SAMPa(rho=0.2)], ids=lambda m: type(m).__name__)
def test_always_or_never_it_is_one_of_the_two(method):
    expected = path_of(method, some())
    assert_same(path_of(Switch(when=every(1), inner=method, otherwise=MomentumSAM()), some()), expected, 0.0)
    assert_same(path_of(Switch(when=after(99), inner=MomentumSAM(), otherwise=method), some()), expected, 0.0)


def test_from_plain_on_it_is_late():
    path = path_of(Switch(when=after(4), inner=LOOK), some())
    assert_same(path, path_of(Late(inner=LOOK, start=4), some()), 0.0)


def test_from_sam_to_sampa():
    """SAM until step 4; there SAMPa is cold and takes a base step, then goes its way."""
    run = Run(
        PROBLEM, PROBLEM.weights(1), Switch(when=after(4), inner=SAMPa(rho=0.2), otherwise=SAM(rho=0.3)), MOMENTUM
    )
    batches = some()
    sam = path_of(SAM(rho=0.3), batches)
    assert_same(trajectory(run, batches[:4], LRS[:4]), sam[:4], 0.0)
    assert run.engine.memory["inner.batch"] is None
    g = PROBLEM.gradient(run.w, batches[4])
    run.step(batches[4], LRS[4])
    assert_same([run.grad], [g], SAME)
    x, _ = run.engine.memory["inner.batch"]
    np.testing.assert_array_equal(x.numpy(), batches[4][0])
    assert_same([drive.arrays(run.engine.memory["inner.grad_y"])], [g], SAME)
    run.step(batches[5], LRS[5])
    assert_differ([run.w], [sam[5]])


def test_two_methods_that_count_under_the_same_name_keep_their_counts():
    run = Run(PROBLEM, PROBLEM.weights(1), SWITCHES["looksam or vsam"], MOMENTUM)
    counts = []
    for batch, lr in zip(some(), LRS, strict=True):
        run.step(batch, lr)
        counts.append((run.engine.memory["inner.t"], run.engine.memory["otherwise.t"]))
    assert counts == [((t + 2) // 2, (t + 1) // 2) for t in range(10)]
    assert "t" not in run.engine.memory


@every_switch
def test_memory_is_named_after_the_part_it_belongs_to(method):
    run = Run(PROBLEM, PROBLEM.weights(1), method, MOMENTUM)
    trajectory(run, some(4), LRS[:4])
    assert all(key.startswith(("inner.", "otherwise.")) for key in run.engine.memory)
    assert all(key.startswith(("inner.", "otherwise.")) for key in run.engine.lagged.waiting)
    parts = {"inner": method.inner, "otherwise": method.otherwise}
    alone = {name: Run(PROBLEM, PROBLEM.weights(1), part, MOMENTUM).engine for name, part in parts.items()}
    assert set(run.engine.memory) == {f"{name}.{key}" for name, engine in alone.items() for key in engine.memory}
    assert run.engine.vector_keys == {f"{name}.{key}" for name, engine in alone.items() for key in engine.vector_keys}


@every_switch
@pytest.mark.parametrize("stop", [1, 4, 7])
def test_a_resumed_run_goes_on_bit_by_bit(method, stop):
    whole = Run(PROBLEM, PROBLEM.weights(1), method, MOMENTUM)
    trajectory(whole, some()[:stop], LRS[:stop])
    file = io.BytesIO()
    torch.save([whole.engine.state_dict(), whole.optimizer.state_dict()], file)
    file.seek(0)
    engine, optimizer = torch.load(file, weights_only=True)
    resumed = Run(PROBLEM, whole.w, method, MOMENTUM, seed=99)
    resumed.optimizer.load_state_dict(optimizer)
    resumed.engine.load_state_dict(engine)
    rest = some()[stop:], LRS[stop:]
    assert_same(trajectory(resumed, *rest), trajectory(whole, *rest), 0.0)


def test_the_state_of_other_parts_is_refused():
    run = Run(PROBLEM, PROBLEM.weights(1), SWITCHES["looksam or vsam"], MOMENTUM)
    trajectory(run, some(2), LRS[:2])
    swapped = Switch(when=every(2), inner=WINDOW, otherwise=LOOK)
    with pytest.raises(
        StateError, match=r"comes from Switch\(LookSAM, VSAM\) and the engine runs Switch\(VSAM, LookSAM\)"
    ):
        Run(PROBLEM, run.w, swapped, MOMENTUM).engine.load_state_dict(run.engine.state_dict())


@pytest.mark.parametrize("steps", [5, 6])
def test_only_the_part_whose_step_overflowed_falls_back(steps):
    """Two SAMPas by turns: the one at work goes cold, the other keeps what it knows."""
    engine, before = overflow(SWITCHES["sampa by turns"], steps)
    cold, kept = ("inner", "otherwise") if steps == 5 else ("otherwise", "inner")
    assert any(g.any() for g in before[f"{cold}.grad_y"])
    assert not any(g.any() for g in engine.memory[f"{cold}.grad_y"])
    assert any(g.any() for g in engine.memory[f"{kept}.grad_y"])
    assert all(engine.memory[f"{kept}.{key}"] is before[f"{kept}.{key}"] for key in ("grad_y", "batch"))


@pytest.mark.parametrize("steps", [5, 6])
def test_an_overflow_leaves_vectors_of_both_parts(steps):
    engine, before = overflow(SWITCHES["looksam or vsam"], steps)
    for key in ("inner.g_v", "otherwise.psf"):
        assert all(torch.equal(a, b) for a, b in zip(engine.memory[key], before[key], strict=True))


@dataclass(frozen=True)
class Early(When):
    """A user's own."""

    last: int = 2

    def holds(self, step):
        return step <= self.last


def test_a_user_s_own_when():
    run = Run(PROBLEM, PROBLEM.weights(1), Switch(when=Early(), inner=SAM()), MOMENTUM)
    assert list(probes(run, some(5))) == [2, 2, 2, 1, 1]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"when": 5}, r"when must be a schedule.When, but is 5; pass every\(5\) or after\(1000\)"),
        ({"when": lambda step: True}, "when must be a schedule.When"),
        ({"inner": None}, "inner must be a Method, but is None; pass a value such as SAM"),
        ({"otherwise": "plain"}, "otherwise must be a Method, but is 'plain'"),
    ],
    ids=["number", "function", "inner", "otherwise"],
)
def test_bad_arguments_are_refused(fields, message):
    with pytest.raises(ArgumentError, match=message):
        Switch(**fields)


def test_it_is_a_value_without_a_radius():
    with pytest.raises(TypeError, match="rho"):
        Switch(rho=0.1)
    method = SWITCHES["looksam or vsam"]
    assert method == dataclasses.replace(method) != dataclasses.replace(method, when=every(3))
    assert len({method, dataclasses.replace(method)}) == 1
    assert repr(Switch(inner=Plain())).startswith("Switch(inner=Plain(")
    assert ", when=Every(k=5, offset=0), otherwise=Plain(" in repr(Switch(inner=Plain()))


@pytest.mark.parametrize("needy", [SAMPa(), BiSAM()], ids=lambda m: type(m).__name__)
@pytest.mark.parametrize("name", ["inner", "otherwise"])
def test_it_needs_its_batch_where_one_part_does(needy, name):
    method = Switch(**{"inner": SAM(), "otherwise": Plain(), name: needy})
    assert method.needs_batch
    assert not method.whole_gradient
    with pytest.raises(UsageError, match="a closure hides"):
        next(Run(PROBLEM, PROBLEM.weights(1), method).engine.passes())
    assert not Switch().needs_batch
    assert Switch().whole_gradient


@pytest.mark.parametrize("name", ["inner", "otherwise"])
def test_it_averages_all_gradients_where_both_parts_do(name):
    method = Switch(**{"inner": SAM(), "otherwise": Plain(), name: SAM(ascent_gradient="local")})
    assert not method.synchronized
    assert Switch().synchronized


@pytest.mark.parametrize("name", ["inner", "otherwise"])
def test_what_a_part_refuses_is_refused_when_the_engine_is_made(name):
    with pytest.raises(ArgumentError, match="start must be given before training"):
        Run(PROBLEM, PROBLEM.weights(1), Switch(**{name: Late()}))


def test_an_exception_takes_the_step_back_in_both_memories():
    def failing(model, batch):
        if np.isnan(float(batch[0][0, 0])):
            raise RuntimeError("broken batch")
        return PROBLEM.loss_fn(model, batch)

    run = Run(PROBLEM, PROBLEM.weights(1), SWITCHES["nested"], MOMENTUM, loss_fn=failing)
    broken = PROBLEM.batch(0)
    broken[0][0, 0] = np.nan
    for batch, lr in zip(some(6), LRS, strict=False):
        before = dict(run.engine.memory)
        with pytest.raises(RuntimeError, match="broken batch"):
            run.engine.backward(drive.to_torch(broken))
        assert run.engine.memory.keys() == before.keys()
        assert all(run.engine.memory[key] is before[key] for key in before)
        run.step(batch, lr)
    assert_same([run.w], path_of(SWITCHES["nested"], some(6))[-1:], 0.0)
