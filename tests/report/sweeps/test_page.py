from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree as ET

import pytest
from made_sweeps import LAM, OPTIMIZER, RHO, contestant, gridded, scattered, sweep, trial

from lowland.report.sweeps.figures import history, importance, shown, slice_of
from lowland.report.sweeps.maps import map_of
from lowland.report.sweeps.page import render, write_page
from lowland.report.sweeps.sentences import best_sentence, edges, headline, notes, outcome, style_of, summary
from lowland.report.values import NumberFormat
from lowland.runs.record import ACCURACY, MetricRecord

STYLE = NumberFormat(ACCURACY)
LOSS = MetricRecord(name="loss", higher=False)


def texts(svg: str) -> list[str]:
    return ["".join(e.itertext()).strip() for e in ET.fromstring(svg).iter() if e.tag.endswith("text")]


def test_the_best_trial_is_named_with_the_trials_it_was_chosen_from() -> None:
    made = sweep(gridded())
    text = best_sentence(made.contestants[0], made)
    assert text.startswith("sampa:rho=0.02..0.8:log,lam=0.0..1.0: Trial 5 has the best validation accuracy, 97.00 %, ")
    assert "with rho=0.0684, lam=0.3333; chosen from 16 trials (14 finished, 1 pruned, 1 diverged)." in text
    assert "edge" not in text
    assert headline(made) == best_sentence(made.contestants[0], made, named=False)
    assert "the mean over 3 seeds" in best_sentence(made.contestants[0], replace(made, seeds=(5, 6, 7)))


@pytest.mark.parametrize(("values", "sides"), [
    ({"rho": "0.021", "lam": "0.5"}, ["rho is at the lower edge of 0.02..0.8:log"]),
    ({"rho": "0.79", "lam": "1"}, ["rho is at the upper edge", "lam is at the upper edge of 0.0..1.0"]),
    ({"rho": "0.03", "lam": "0.06"}, []),  # far from the end by its logarithm
])  # fmt: skip
def test_a_best_value_at_the_edge_of_its_range_is_said(values: dict[str, str], sides: list[str]) -> None:
    made = contestant(trial(0, **values))
    found = edges(made, made.trials[0])
    assert len(found) == len(sides)
    assert all(side in text for side, text in zip(sides, found, strict=True))


def test_choices_have_an_edge_if_they_are_three_numbers() -> None:
    sizes = replace(RHO, name="batch_size", text="32|64|128", low=None, high=None, choices=("128", "32", "64"))
    two = replace(sizes, choices=("32", "64"))
    for parameter, value, count in ((sizes, "128", 1), (sizes, "64", 0), (two, "32", 0), (OPTIMIZER, "sgd", 0)):
        best = trial(0, **{parameter.name: value})
        assert len(edges(contestant(best, parameters=(parameter,)), best)) == count


def test_ties_repeats_and_unfinished_trials_are_said() -> None:
    trials = [trial(0, rho="0.1"), trial(1, rho="0.2"), trial(2, rho="0.1"), trial(3, None, "running", rho="0.3")]
    made = sweep(contestant(*trials, parameters=(RHO,), total=5))
    text = best_sentence(made.contestants[0], made)
    assert "chosen from 4 trials (3 finished, 1 still running, 3 different). 1 other trial has the same value." in text
    losses = [0.2, 0.3, 0.2, None]
    known = [replace(t, loss=loss) for t, loss in zip(trials, losses, strict=True)]
    made_with_losses = sweep(contestant(*known, parameters=(RHO,), total=5))
    sentence = best_sentence(made_with_losses.contestants[0], made_with_losses)
    assert sentence.endswith("1 other trial has the same value, but a higher validation loss.")
    assert notes(made)[-1] == "The sweep is not complete: 1 running, 1 not begun."
    none = sweep(contestant(trial(0, None, "diverged", rho="0.1"), parameters=(RHO,)))
    assert headline(none) == "No trial has finished, so there is nothing to choose."
    assert best_sentence(none.contestants[0], none).endswith("No trial has finished: 1 trial (1 diverged).")


def test_several_contestants_are_ranked_by_the_direction_of_the_metric() -> None:
    one, two = contestant(trial(0, 0.8, rho="0.1", lam="0.5")), contestant(trial(0, 0.9, rho="0.2", lam="0.5"))
    made = sweep(one, replace(two, text="other"))
    assert "The best validation accuracy is 90.00 %, with sampa:rho=0.2,lam=0.5." in headline(made)
    assert "Every contestant was tuned with 1 trial." in headline(made)
    assert "with sampa:rho=0.1" in headline(replace(made, metric=LOSS))
    assert summary(made)[1].startswith("other: ")
    unequal = sweep(one, replace(two, text="other", total=3))
    assert "different numbers of trials: sampa:rho=0.02..0.8:log,lam=0.0..1.0 (1) and other (3)" in headline(unequal)


def test_the_notes_say_what_the_numbers_are() -> None:
    text = " ".join(notes(sweep(gridded())))
    assert "chosen on the validation part (10 % of the training part, at the last epoch); the test part chose" in text
    assert "Each trial has one seed" in text
    assert "1 trial was pruned" in text
    own = sweep(contestant(trial(0, rho="1")), validation=0.0, select="best", seeds=(7, 8))
    assert "(a part of the data, at the best epoch)" in " ".join(notes(own))
    assert "one seed" not in " ".join(notes(own))
    task = contestant(trial(0, rho="1"), parameters=(replace(RHO, name="task.noise", place="task"),))
    assert "their validation values belong to different tasks" in " ".join(notes(sweep(task)))


def test_a_display_line_for_each_outcome() -> None:
    made = sweep(contestant(trial(0, 0.5, rho="1"), trial(1, 0.4, rho="2"), trial(2, None, "pruned", rho="3")))
    lines = [outcome(made, 0, each) for each in made.contestants[0].trials]
    assert lines == [
        "trial 0 of sampa:rho=1: validation accuracy 50.00 %, the best so far",
        "trial 1 of sampa:rho=2: validation accuracy 40.00 %",
        "trial 2 of sampa:rho=3: pruned after epoch 1",
    ]


def test_the_map_of_a_grid_has_a_value_in_each_cell() -> None:
    found = texts(map_of(gridded(), STYLE))
    assert found.count("97.00") == 2  # the best cell, and the end of the color bar
    assert {"rho", "lam", "pruned", "diverged", "0.3333"} <= {*found}
    assert "20.00" in found  # the far value is in its cell, but not on the color bar
    assert any(text.endswith("or worse") for text in found)


def test_the_map_needs_two_numeric_fields_and_a_finished_trial() -> None:
    assert map_of(scattered(), STYLE)
    assert not map_of(contestant(trial(0, rho="0.1"), parameters=(RHO,)), STYLE)
    assert not map_of(contestant(trial(0, rho="0.1", optimizer="sgd"), parameters=(RHO, OPTIMIZER)), STYLE)
    assert not map_of(contestant(trial(0, None, "diverged", rho="0.1", lam="0.1")), STYLE)
    assert map_of(contestant(trial(0, rho="0.1", lam="0.1")), STYLE)  # one trial alone


def test_of_trials_at_one_place_the_map_shows_the_best() -> None:
    points = tuple(replace(each, choices=("0.1", "0.2")) for each in (RHO, LAM))
    trials = [trial(n, score, rho="0.1", lam="0.1") for n, score in enumerate((0.5, 0.7, 0.6))]
    found = texts(map_of(contestant(*trials, parameters=points), STYLE))
    assert "70.00" in found
    assert "50.00" not in found
    found = texts(map_of(contestant(*trials, parameters=points), NumberFormat(LOSS)))
    assert "0.50" in found
    assert "0.70" not in found


def test_the_best_of_equal_trials_at_one_place_is_framed() -> None:
    """The loss decides between equal trials, so the best one need not be the first at its place."""
    points = tuple(replace(each, choices=("0.1", "0.2")) for each in (RHO, LAM))
    trials = [replace(trial(n, 0.7, rho="0.1", lam="0.1"), loss=loss) for n, loss in enumerate((0.5, 0.3))]
    made = contestant(*trials, parameters=points)
    assert made.best(higher=True) == trials[1]
    assert map_of(made, STYLE).count("stroke-width: 2.2") == 1


def test_far_values_are_cut_off_on_the_worse_side_only() -> None:
    assert shown([0.9, 0.91, 0.92, 0.1], ACCURACY)[0] == pytest.approx(0.905 - 4 * 0.015)
    assert shown([0.9, 0.91, 0.92], ACCURACY) == (0.9, 0.92)
    assert shown([0.1, 0.11, 0.12, 9.0], LOSS) == (0.1, pytest.approx(0.115 + 4 * 0.015))
    assert shown([0.5, 0.5, 0.1], ACCURACY) == (0.1, 0.5)
    assert shown([0.5], ACCURACY) == (0.5, 0.5)


def test_every_figure_is_drawn_or_empty() -> None:
    made = scattered()
    for parameter in made.parameters:
        assert parameter.name in texts(slice_of(made, parameter, STYLE))
    assert "trial" in texts(history(made, STYLE))
    assert {"60", "rho"} <= {*texts(importance(made.importance))}
    nothing = contestant(trial(0, None, "diverged", rho="1", lam="1"))
    assert (history(nothing, STYLE), slice_of(nothing, RHO, STYLE), importance({})) == ("", "", "")


@pytest.mark.parametrize("record", [
    sweep(gridded()), sweep(gridded(), scattered()), sweep(scattered(), metric=LOSS, command="", comparison=()),
    sweep(contestant(trial(0, None, "refused", rho="1"))), sweep(contestant(trial(0, None, "running"), total=9)),
    sweep(contestant(total=3)),
], ids=["grid", "two", "loss", "refused", "running", "none"])  # fmt: skip
def test_the_page_is_complete_html_without_links_elsewhere(record: object, tmp_path: Path) -> None:
    path = write_page(record, tmp_path / "page.html")  # type: ignore[arg-type]
    html = path.read_text()
    assert html.startswith("<!DOCTYPE html>")
    assert html.rstrip().endswith("</html>")
    links = re.sub(r"http://www\.w3\.org/\S+", "", html)
    assert "http" not in links
    assert "<script" not in html
    assert "built-in" not in html
    assert "lowland sweep · 2026-11-27" in html
    ids = re.findall(r'\bid="([^"]+)"', html)
    assert len(ids) == len({*ids})


def test_the_page_shows_trials_best_first_and_messages() -> None:
    refused = replace(trial(2, None, "refused", rho="3", lam="1"), message="rho is <too> large")
    made = sweep(contestant(trial(0, 0.5, rho="0.1", lam="0.2"), trial(1, 0.9, rho="0.2", lam="0.3"), refused))
    html = render(made)
    cells = [re.findall(r"<td>(.*?)</td>", row) for row in re.findall(r"<tr[^>]*title.*?</tr>", html)]
    assert cells == [
        ["1", "90.00", "0.2", "0.3", "finished", "1"],
        ["0", "50.00", "0.1", "0.2", "finished", "1"],
        ["2", "–", "3", "1", "refused by the method", "1"],
    ]
    assert '<tr class="best" title="run-1">' in html
    assert "trial 2: rho is &lt;too&gt; large" in html
    assert "lowland compare" in html


def test_a_style_for_small_losses() -> None:
    made = sweep(contestant(trial(0, 0.00123, rho="1", lam="1")), metric=LOSS)
    assert style_of(made).value(0.00123) == "0.001230"
