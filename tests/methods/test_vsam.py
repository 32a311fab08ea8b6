"""V1 to V5: what the formulas of vSAM imply, and of ARSAM, which follows its rule.

Float64 throughout. What is equal in exact arithmetic agrees here to `SAME`: rounding times a few dozen steps.
"""

from __future__ import annotations

import pytest
from reference import drive
from reference.cases import BASES, MOMENTUM, PROBLEM, SAME, path_of, probes, some
from reference.drive import Run, assert_same
from reference.vectors import add, norm

from lowland import ARSAM, SAM, VSAM

windows = pytest.mark.parametrize("kind", [VSAM, ARSAM])


@windows
def test_v1_psf_is_what_sam_adds(kind):
    run = Run(PROBLEM, PROBLEM.weights(1), kind(rho=0.3, window=4, warmup=2), MOMENTUM)
    refreshes = 0
    for batch in some():
        g = PROBLEM.gradient(run.w, batch)
        if next(probes(run, [batch])) == 2:
            assert_same([add(g, drive.arrays(run.engine.memory["psf"]))], [run.grad], SAME)
            refreshes += 1
    assert 4 <= refreshes < 10


@windows
@pytest.mark.parametrize("fields", [{"warmup": 10}, {"window": 1}], ids=["warmup", "window"])
@pytest.mark.parametrize("base", BASES)
def test_v2_refreshed_always_it_is_sam(kind, fields, base):
    path = path_of(kind(rho=0.2, **fields), some(), optimizer=BASES[base])
    assert_same(path, path_of(SAM(rho=0.2), some(), optimizer=BASES[base]), SAME)


@windows
def test_v3_without_reuse_it_alternates_sam_and_the_base(kind):
    run = Run(PROBLEM, PROBLEM.weights(1), kind(rho=0.2, window=3, beta=0.0), MOMENTUM)
    seen = set()
    for batch in some(12):
        w, g = run.w, PROBLEM.gradient(run.w, batch)
        asked = next(probes(run, [batch]))
        seen.add(asked)
        d = PROBLEM.gradient(add(w, g, 0.2 / norm(g)), batch) if asked == 2 else g
        assert_same([run.grad], [d], SAME)
    assert seen == {1, 2}


@windows
@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize(("window", "p_max"), [(8, 0.8), (10, 0.25), (3, 0.1)])
def test_v4_every_window_has_its_number_of_refreshes(kind, seed, window, p_max):
    method = kind(rho=0.4, window=window, p_max=p_max, a1=0.9, a2=0.9, blocks=2, last=2, warmup=6)
    run = Run(PROBLEM, PROBLEM.weights(1), method, seed=seed)
    assert list(probes(run, some(6))) == [2] * 6
    most, counts = max(1, int(window * p_max)), []
    for start in range(6, 6 + 6 * window, window):
        batches = [PROBLEM.batch(start + t) for t in range(window)]
        counts.append(sum(asked == 2 for asked in probes(run, batches)))
        assert counts[-1] == int(run.engine.memory["s"])
        assert 1 <= counts[-1] <= most
    if most > 1:
        assert max(counts) > 1  # else the budget never moved and the test says little


@windows
def test_v5_the_reuse_fades_and_ends(kind):
    beta = 0.8
    run = Run(PROBLEM, PROBLEM.weights(1), kind(rho=0.4, window=24, beta=beta, warmup=1))
    assert list(probes(run, some(1))) == [2]
    age, ages = 0, set()
    for batch in some(48):
        g = PROBLEM.gradient(run.w, batch)
        if next(probes(run, [batch], [0.05])) == 2:
            age = 0
            continue
        age += 1
        ages.add(age)
        expected = beta**age if age <= 6 else 0.0
        assert_same([run.grad], [add(g, drive.arrays(run.engine.memory["psf"]), expected)], SAME)
    assert ages >= set(range(1, 9))


@windows
def test_windows_depend_on_the_seed_alone(kind):
    def pattern(seed):
        run = Run(PROBLEM, PROBLEM.weights(1), kind(window=10), seed=seed)
        return list(probes(run, some(40)))

    assert pattern(3) == pattern(3)
    assert pattern(3) != pattern(4)
