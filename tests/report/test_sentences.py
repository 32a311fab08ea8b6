"""What the sentence at the top recommends, for comparisons made by hand."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import pytest
from made_runs import lines_of, modern, write_lines

from lowland.report import Row, read, summarize, verdict

WriteRun = Callable[..., Path]
FLAT = (0.0, 0.0, 0.0)


def rows_of(write_run: WriteRun, gains: Mapping[str, Sequence[float]], **options: object) -> list[Row]:
    """Rows with these gains per seed, in points, over a plain training at 90, 91 and 92 %."""
    records = []
    for text, each in ({"plain": FLAT} | dict(gains)).items():
        epochs = 16 if "epochs=16" in text else 8
        for seed, gain in enumerate(each):
            accuracy = 0.90 + 0.01 * seed + gain / 100
            folder = f"{text.replace(':', '_')}-{seed}-{len(gains)}-{sum(each)}"
            records.append(read(write_run(text, seed, accuracy=accuracy, epochs=epochs, folder=folder, **options)))
    return summarize(records)


def said(rows: Sequence[Row]) -> str:
    return verdict(rows).replace("\u00a0", " ")


def test_the_largest_gain_that_is_more_than_chance(write_run: WriteRun) -> None:
    gains = {"sam": (1.0, 1.1, 1.2), "sampa": (0.5, 0.6, 0.7), "looksam": (-2.0, 5.0, 2.0)}
    assert said(rows_of(write_run, gains)) == (
        "Take sam: +1.10 ± 0.25 points over plain, p = 0.0082 after Holm's correction for 3 comparisons, "
        "at 2.00 gradients and 1.00 × plain's time per step."
    )


def test_nothing_better_than_chance(write_run: WriteRun) -> None:
    rows = rows_of(write_run, {"sam": (-1.0, 1.0, 1.5), "sampa": (-0.1, 0.0, 0.2)})
    assert said(rows) == (
        "Nothing can be recommended: none of 2 contestants is shown to be better than plain over 3 seeds. sam comes "
        "first with +0.50 ± 3.29 points over plain, p = 1 after Holm's correction for 2 comparisons, at 2.00 gradients "
        "and 1.00 × plain's time per step."
    )


def test_nothing_ahead_at_all(write_run: WriteRun) -> None:
    rows = rows_of(write_run, {"sam": (-1.0, -1.0, -1.5)})
    assert said(rows) == "Nothing can be recommended: sam is not shown to be better than plain over 3 seeds."


def test_equal_differences_are_not_judged(write_run: WriteRun) -> None:
    rows = rows_of(write_run, {"sam": (1.0, 1.0, 1.0)})
    assert (rows[1].p, rows[1].effect) == (None, "open")
    assert said(rows).endswith("sam has +1.00 ± 0.00 points over plain in every seed, which no test can judge.")


def test_plain_training_that_gains_as_much_for_no_more_is_taken(write_run: WriteRun) -> None:
    gains = {"sam": (1.0, 1.1, 1.2), "plain@epochs=16": (1.2, 1.3, 1.4)}
    assert said(rows_of(write_run, gains)) == (
        "Take plain@epochs=16: +1.30 ± 0.25 points over plain, p = 0.0039 after Holm's correction for 2 comparisons, "
        "at 1.00 gradients and 1.00 × plain's time per step, 2.00 × the gradients and 2.00 × the time of the whole "
        "training."
    )


def test_a_gain_that_may_be_the_plain_trainings_own_is_not_recommended(write_run: WriteRun) -> None:
    gains = {"sam": (1.3, 1.1, 1.5), "plain@epochs=16": (1.2, 1.3, 1.1)}
    rows = rows_of(write_run, gains)
    assert said(rows).startswith("Take plain@epochs=16: +1.20 ± 0.25 points over plain")
    assert said(rows).endswith("sam costs no less and is not shown to gain more than plain training does at that cost.")


def test_a_method_that_beats_plain_training_of_its_cost_is_taken(write_run: WriteRun) -> None:
    gains = {"sam": (2.0, 2.1, 2.2), "plain@epochs=16": (1.0, 1.1, 1.3)}
    assert said(rows_of(write_run, gains)).startswith("Take sam: +2.10 ± 0.25 points over plain")


def test_a_method_that_costs_less_than_the_plain_training_is_taken(write_run: WriteRun) -> None:
    gains = {"looksam": (1.0, 1.1, 1.2), "plain@epochs=16": (1.2, 1.3, 0.8)}
    assert said(rows_of(write_run, gains)).startswith("Take looksam: +1.10 ± 0.25 points over plain")


def test_a_plain_training_ahead_by_chance_recommends_nothing(write_run: WriteRun) -> None:
    gains = {"sam": (1.0, 1.1, 1.2), "plain@epochs=16": (0.0, 4.0, 1.0)}
    assert said(rows_of(write_run, gains)) == (
        "Nothing can be recommended: sam has +1.10 ± 0.25 points over plain at 2.00 gradients and 1.00 × plain's time "
        "per step, but plain@epochs=16 gains as much at no higher cost, which may itself be chance."
    )


def test_one_seed_decides_nothing(write_run: WriteRun) -> None:
    rows = rows_of(write_run, {"plain": (0.0,), "sam": (1.0,)})
    assert said(rows) == (
        "Nothing can be recommended: one seed decides nothing, so take several. sam has the best accuracy, 91.00 %."
    )


@pytest.mark.parametrize(
    ("better", "opening"),
    [(True, "Take sam: a perplexity 1.10 ± 0.25 below plain's, p = 0.0027, at"), (False, "Nothing can be recommended")],
)
def test_where_lower_is_better(tmp_path: Path, better: bool, opening: str) -> None:
    perplexity = {"name": "perplexity", "unit": "", "scale": 1, "higher": False}
    rows = summarize(
        [
            read(write_lines(tmp_path / f"{m}{s}", modern(lines_of(m, s, accuracy=value), perplexity)))
            for m, gain in (("plain", FLAT), ("sam", (1.0, 1.1, 1.2)))
            for s in range(3)
            for value in [20.0 + s + (-gain[s] if better else gain[s])]
        ]
    )
    assert rows[1].difference is not None
    assert rows[1].difference.mean == pytest.approx(1.1 if better else -1.1)
    assert rows[1].effect == ("better" if better else "worse")
    assert said(rows).startswith(opening)
