from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from math import sqrt
from pathlib import Path

import pytest
from made_runs import lose
from scipy.stats import ttest_1samp

from lowland.report import groups, markdown, notes, read, summarize, verdict
from lowland.report.summary import MIN_EPOCHS, Row
from lowland.runs.reader import read_all
from lowland.runs.record import RunRecord

WriteRun = Callable[..., Path]
PLAIN = [0.950, 0.952, 0.954]
SAMPA = [0.961, 0.962, 0.966]  # differences in points: 1.1, 1.0, 1.2


def three_methods(write_run: WriteRun) -> list[RunRecord]:
    runs = []
    for seed in range(3):
        runs.append(write_run("sampa", seed, accuracy=SAMPA[seed], seconds_per_step=0.02 + 0.001 * seed))
        runs.append(write_run("looksam", seed, accuracy=PLAIN[seed] + 0.002 * (seed - 1)))
        runs.append(write_run("plain", seed, accuracy=PLAIN[seed], seconds_per_step=0.01))
    return [read(run) for run in runs]


def test_numbers_by_hand(write_run: WriteRun) -> None:
    plain, sampa, looksam = summarize(three_methods(write_run))
    assert [plain.contestant, sampa.contestant, looksam.contestant] == ["plain", "sampa", "looksam"]
    assert plain.baseline
    assert plain.difference is None
    assert plain.effect is None
    assert sampa.seeds == (0, 1, 2)
    assert sampa.score is not None
    assert sampa.score.mean == pytest.approx(0.963)
    # s² = (0.002² + 0.001² + 0.003²) / 2
    assert sampa.score.half == pytest.approx(4.302653 * sqrt(7e-6) / sqrt(3), rel=1e-6)
    assert sampa.difference is not None
    assert sampa.difference.mean == pytest.approx(0.011)
    assert sampa.difference.half == pytest.approx(4.302653 * 0.001 / sqrt(3), rel=1e-6)
    assert (sampa.effect, looksam.effect) == ("better", "open")
    assert (sampa.gradients, sampa.sequential) == (2.0, 1.0)
    assert sampa.time == pytest.approx(2.1)  # the median of 2.0, 2.1, 2.2
    assert sampa.memory == 5 * 2**20
    assert sampa.memory_ratio == 1.25
    assert sampa.sharpness == pytest.approx(0.0125)


def test_worse(write_run: WriteRun) -> None:
    runs = [
        write_run(m, s, accuracy=a)
        for m, s, a in [("plain", 0, 0.9), ("plain", 1, 0.91), ("sam", 0, 0.8), ("sam", 1, 0.811)]
    ]
    rows = summarize([read(run) for run in runs])
    assert rows[1].effect == "worse"
    assert verdict(rows) == "Nothing can be recommended: sam is not shown to be better than plain over 2 seeds."


def test_marks_are_corrected_for_the_number_of_comparisons(write_run: WriteRun) -> None:
    gains = {"a": (0.010, 0.012, 0.014), "b": (0.001, 0.010, 0.011), "c": (-0.01, 0.01, 0.02), "plain": (0, 0, 0)}
    runs = [read(write_run(m, s, accuracy=0.9 + g)) for m, each in gains.items() for s, g in enumerate(each)]
    rows = {row.contestant: row for row in summarize(runs)}
    p = {m: ttest_1samp(gains[m], 0).pvalue for m in "abc"}
    assert p["a"] < 0.05 / 3
    assert rows["a"].p == pytest.approx(3 * p["a"])
    assert rows["b"].p == pytest.approx(min(1, 2 * p["b"]))
    assert [rows[m].effect for m in "abc"] == ["better", "open", "open"]
    alone = {row.contestant: row for row in summarize([r for r in runs if r.contestant in ("a", "plain")])}
    assert alone["a"].p == pytest.approx(p["a"])


def test_what_diverged_is_compared_with_nothing(write_run: WriteRun) -> None:
    runs = [write_run(m, s, accuracy=0.9 + 0.01 * s) for m in ("plain", "sam", "sampa") for s in (0, 1)]
    lose(runs[3])
    rows = {row.contestant: row for row in summarize([read(run) for run in runs])}
    assert (rows["sam"].diverged, rows["sam"].score, rows["sam"].difference) == ((1,), None, None)
    assert rows["sampa"].difference is not None
    told = verdict(list(rows.values()))
    assert told.startswith("sam diverged in 1 of 2 seeds. ")
    assert "diverged in 1 of 2" in markdown(list(rows.values()))


def test_without_a_sound_baseline_there_is_no_verdict(write_run: WriteRun) -> None:
    runs = [write_run(m, s, accuracy=0.9 + 0.01 * s) for m in ("plain", "sam") for s in (0, 1)]
    lose(runs[0])
    lose(runs[1])
    rows = summarize([read(run) for run in runs])
    assert all(row.difference is None for row in rows)
    assert verdict(rows) == "plain diverged in 2 of 2 seeds. Nothing can be said of the others without a baseline."
    assert verdict(rows[:1]).endswith("Nothing can be compared; a lower learning rate is the first thing to try.")


def test_one_seed_has_no_interval_and_no_verdict(write_run: WriteRun) -> None:
    rows = summarize([read(write_run("plain", accuracy=0.9)), read(write_run("sam", accuracy=0.95))])
    assert rows[1].score is not None
    assert rows[1].score.half is None
    assert rows[1].effect == "open"
    assert "one seed decides nothing" in verdict(rows)


def test_without_baseline(write_run: WriteRun) -> None:
    rows = summarize([read(write_run("sam", s, accuracy=0.9)) for s in (0, 1)])
    assert [(row.baseline, row.difference, row.time) for row in rows] == [(False, None, None)]
    assert rows[0].seconds == 0.01
    assert "without a finished baseline" in verdict(rows)


def test_another_baseline(write_run: WriteRun) -> None:
    rows = summarize(three_methods(write_run), baseline="looksam")
    assert [row.contestant for row in rows] == ["looksam", "sampa", "plain"]
    assert verdict(rows).startswith("Take sampa: +1.10 ± 0.43 points over looksam, p = 0.016")


def test_unfinished_runs_are_listed_not_counted(write_run: WriteRun) -> None:
    records = three_methods(write_run)
    records += [read(write_run("sampa", 3, finished=False)), read(write_run("sam", 0, finished=False))]
    rows = {row.contestant: row for row in summarize(records)}
    assert rows["sampa"].unfinished == (3,)
    assert rows["sampa"].score is not None
    assert rows["sampa"].score.n == 3
    assert rows["sam"].seeds == ()
    assert rows["sam"].score is None
    assert notes(records)[0] == "Unfinished and not counted: sampa seed 3, sam seed 0."
    assert verdict(summarize(records[-2:])) == "No run has finished yet."


def test_repeated_run_counts_once(write_run: WriteRun) -> None:
    old = read(write_run("plain", 0, accuracy=0.1, time="2026-01-01"))
    new = read(write_run("plain", 0, accuracy=0.9, time="2026-02-01", folder="new"))
    torn = read(write_run("plain", 0, finished=False, time="2026-03-01", folder="torn"))
    for records in ([old, new, torn], [torn, new, old]):
        (row,) = summarize(records)
        assert row.score is not None
        assert (row.score.mean, row.score.n) == (0.9, 1)
        assert "2 of 3 runs repeat" in notes(records)[0]


def test_label_is_the_key_where_it_is_enough(write_run: WriteRun) -> None:
    runs = [read(write_run(text)) for text in ("sampa:lam=0", "sampa:lam=1", "sam:rho=0.1")]
    assert [row.label for row in summarize(runs)] == ["sampa:lam=0", "sampa:lam=1", "sam"]


def test_notes_on_what_does_not_compare(write_run: WriteRun) -> None:
    first = read(write_run("plain", 0))
    other = read(write_run("sam", 1, recipe={"lr": 0.2}, machine={"device": "cuda"}, versions={"torch": "2.6"}))
    told = " ".join(notes([first, other]))
    assert "different machines" in told
    assert "different versions of torch" in told
    assert "same seeds" in told


def test_notes_on_what_gradients_do_not_count(write_run: WriteRun) -> None:
    records = [read(write_run(text)) for text in ("plain", "sam", "k-sam", "sl-sam")]
    ends = {r.contestant: r.end for r in records}
    assert not [n for n in notes(records) if "gradients" in n]  # runs of older versions do not say

    def with_end(text: str, **known: float) -> RunRecord:
        record = next(r for r in records if r.contestant == text)
        end = ends[text]
        assert end is not None
        return replace(record, end=replace(end, gradients_per_step=2.0, **known))

    told = notes(
        [
            with_end("plain", forwards_per_step=0.0, weights_per_step=2.0),
            with_end("k-sam", forwards_per_step=1.0, weights_per_step=2.0),
            with_end("sl-sam", forwards_per_step=0.0, weights_per_step=0.41),
        ]
    )
    assert [n for n in told if "gradients" in n] == [
        "k-sam also takes 1 forward pass a step, not counted as gradients.",
        "sl-sam takes its gradients for some tensors only, 20 % of them on average.",
    ]
    assert not [n for n in told if n.startswith("plain")]


def test_short_trainings_are_not_compared(write_run: WriteRun) -> None:
    def rows_of(epochs: int) -> list[Row]:
        gains = {"plain": (0.0, 0.0), "sam": (0.05, 0.051)}
        return summarize(
            [
                read(write_run(m, s, accuracy=0.9 + g, epochs=epochs, folder=f"{m}{s}-{epochs}"))
                for m, each in gains.items()
                for s, g in enumerate(each)
            ]
        )

    short, long = rows_of(MIN_EPOCHS - 1), rows_of(MIN_EPOCHS)
    assert verdict(short).startswith(
        "Nothing can be recommended: a training of 7 epochs is too short to compare methods"
    )
    assert (short[1].effect, short[1].p) == (None, None)
    assert short[1].difference is not None
    assert verdict(long).startswith("Take sam: +5.05 ± 0.64 points over plain, p = 0.0063, at 2.00 gradients")
    assert verdict(short[:1]).startswith("plain stands alone")


def test_a_recipe_of_its_own_stands_in_the_row(write_run: WriteRun) -> None:
    recipes = {"plain": {"lr": 0.1}, "sam": {"lr": 0.2, "momentum": 0.0}, "looksam@lr=0.3": {"lr": 0.3}}
    records = [read(write_run(t, recipe=recipe)) for t, recipe in recipes.items()]
    plain, sam, looksam = summarize(records)
    assert (plain.recipe, sam.recipe, looksam.recipe) == ({}, {"lr": 0.2, "momentum": 0.0}, {"lr": 0.3})
    assert (looksam.contestant, looksam.label) == ("looksam@lr=0.3", "looksam@lr=0.3")
    assert "| `sam` (lr=0.2, momentum=0) |" in markdown([plain, sam, looksam])
    assert "| `looksam@lr=0.3` |" in markdown([plain, sam, looksam])  # said already


def test_a_contestant_with_more_epochs_stands_in_the_comparison(write_run: WriteRun) -> None:
    def budget(steps: int) -> dict[str, object]:
        return {"kind": "steps", "limit": steps}

    records = [read(write_run("plain", budget=budget(176))), read(write_run("sam", budget=budget(176)))]
    twice = read(write_run("plain@epochs=16", epochs=16, budget=budget(352)))
    (members,) = groups([*records, twice]).values()
    plain, sam, longer = summarize(members)
    assert [row.plain for row in (plain, sam, longer)] == [True, False, True]
    assert [row.baseline for row in (plain, sam, longer)] == [True, False, False]
    assert (sam.work, longer.work) == (2.0, 2.0)
    assert (longer.gradients, longer.time, longer.duration) == (1.0, 1.0, 2.0)
    assert list(groups([twice])) == [("digits", "mlp", "", "352 steps")]  # by itself
    longer_plain = read(write_run("plain", 1, epochs=16, budget=budget(352)))
    found = groups([*records, longer_plain, twice])
    assert [len(members) for members in found.values()] == [2, 2]  # with those of its own budget
    known = [replace(r, command="one") for r in records]
    found = groups([*known, replace(longer_plain, command="two"), replace(twice, command="one")])
    assert [len(members) for members in found.values()] == [3, 1]  # with those of its own command


def test_groups_keep_budgets_and_noise_apart(write_run: WriteRun) -> None:
    noisy = {"kind": "symmetric", "rate": 0.2}
    records = [
        read(write_run("plain", 0)),
        read(write_run("plain", 1, noise={"kind": "none", "rate": 0.0})),
        read(write_run("plain", 2, noise=noisy)),
        read(write_run("plain", 3, budget={"kind": "seconds", "limit": 90.0})),
        read(write_run("plain", 4, task="cifar10")),
        read(write_run("plain", 5, model="convnet")),
    ]
    found = groups(records)
    assert [len(group) for group in found.values()] == [2, 1, 1, 1, 1]
    assert ("digits", "mlp", "20 % symmetric label noise", "176 steps") in found
    assert ("digits", "mlp", "", "90 seconds") in found


def test_one_short_contestant_leaves_the_others_comparable(write_run: WriteRun) -> None:
    gains = {"plain": (0.0, 0.0), "sam": (0.05, 0.051), "plain@epochs=3": (0.2, 0.2)}
    rows = summarize(
        [
            read(write_run(m, s, accuracy=0.7 + g, epochs=3 if "@" in m else MIN_EPOCHS, folder=f"{m}{s}"))
            for m, each in gains.items()
            for s, g in enumerate(each)
        ]
    )
    by_name = {row.contestant: row for row in rows}
    assert by_name["sam"].effect == "better"
    assert by_name["sam"].p == pytest.approx(0.0063, abs=1e-4)  # as without the short one: not one of the comparisons
    assert (by_name["plain@epochs=3"].effect, by_name["plain@epochs=3"].p) == (None, None)
    assert by_name["plain@epochs=3"].difference is not None
    said = verdict(rows)
    assert said.startswith("Take sam: +5.05 ± 0.64 points over plain, p = 0.0063, at 2.00 gradients")
    assert said.endswith("plain@epochs=3 trained for 3 epochs, too short to compare with the others.")


def test_without_a_contestant_that_is_long_enough_nothing_is_compared(write_run: WriteRun) -> None:
    runs = [("plain", 0.7, MIN_EPOCHS), ("sam", 0.8, 4)]
    rows = summarize(
        [read(write_run(m, s, accuracy=a + s / 99, epochs=e, folder=f"{m}{s}")) for m, a, e in runs for s in (0, 1)]
    )
    assert "a training of 4 epochs is too short" in verdict(rows)
    assert [row.effect for row in rows] == [None, None]


def test_a_tuned_comparison_has_a_baseline_and_one_table(write_run: WriteRun) -> None:
    """What a sweep has tuned have recipes of their own, all of them; the trials stand in a table of their own."""
    sweep = ["lowland", "sweep", "--methods", "plain@lr=0.02..0.5:log", "sam:rho=0.02..0.5:log@lr=0.02..0.5:log"]
    compare = ["lowland", "compare", "--methods", "plain@lr=0.05", "plain@lr=0.1,epochs=16", "sam:rho=0.2@lr=0.03"]
    for text, accuracy in (("plain@lr=0.05", 0.9), ("plain@lr=0.4", 0.8), ("sam:rho=0.2@lr=0.03", 0.91)):
        write_run(text, 1000, accuracy=accuracy, command=sweep, trial=True)
    for seed in (0, 1, 2):
        # twice the epochs come first, but have twice the budget
        write_run("plain@lr=0.1,epochs=16", seed, accuracy=0.89 + 0.001 * seed, epochs=16, command=compare)
        write_run("plain@lr=0.05", seed, accuracy=0.9, command=compare)
        write_run("sam:rho=0.2@lr=0.03", seed, accuracy=0.95 + 0.001 * seed, command=compare)
    tables = groups(read_all([write_run("sam", 7, task="other").parent]))
    trials, tuned = ("digits", "mlp", "", "176 steps", "trials of a sweep"), ("digits", "mlp", "", "176 steps")
    assert {heading: len(members) for heading, members in tables.items() if heading[0] == "digits"} == {
        trials: 3,
        tuned: 9,
    }
    plain, longer, sam = summarize(tables[tuned])
    assert (plain.contestant, plain.baseline) == ("plain@lr=0.05", True)
    assert longer.difference is not None
    assert longer.difference.mean == pytest.approx(-0.009)
    assert sam.difference is not None
    assert (sam.difference.mean, sam.effect) == (pytest.approx(0.051), "better")
    assert not any(row.baseline for row in summarize(tables[trials]))
    assert verdict([plain, longer, sam]).startswith("Take sam")
