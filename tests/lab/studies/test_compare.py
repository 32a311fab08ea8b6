from __future__ import annotations

import re
from dataclasses import replace

import pytest
import torch
from torch import nn

from lowland.core.errors import ArgumentError, ParameterError, UnknownNameError
from lowland.lab.budget import Budget
from lowland.lab.data.loader import Loader
from lowland.lab.studies import compare as module
from lowland.lab.studies.compare import budget, compare, expand, page_name, run_name
from lowland.lab.studies.contestants import grid
from lowland.lab.tasks.digits import Digits
from lowland.methods import METHODS
from lowland.runs.file import history


class Watch:
    """Remembers what a display is told; stops the comparison when a run of a given name begins."""

    def __init__(self, stop: str = "") -> None:
        self.stop = stop
        self.begun: list[str] = []
        self.kept: list[str] = []
        self.done: list[str] = []

    def begin(self, name: str) -> None:
        if name == self.stop:
            raise KeyboardInterrupt
        self.begun.append(name)

    def update(self, update) -> None:
        pass

    def end(self, name: str, line, *, kept: bool) -> None:
        (self.kept if kept else self.done).append(name)


def test_methods_take_turns(config):
    runs = grid(config, ["plain", "sampa:rho=0.1,lam=0.2"], 2)
    assert [(c.method, c.seed) for c in runs] == [
        ("plain", 0), ("sampa:rho=0.1,lam=0.2", 0), ("plain", 1), ("sampa:rho=0.1,lam=0.2", 1)
    ]  # fmt: skip


def test_adasam_has_a_recipe_of_its_own(config):
    for run in grid(config, ["sam", "adasam", "late:inner=adasam"], 2):
        own = config.recipe.replace(
            optimizer="amsgrad", lr=config.recipe.lr / 20, weight_decay=config.recipe.weight_decay / 10
        )
        assert run.recipe == (config.recipe if run.method == "sam" else own)


def test_all_is_every_method_that_works(config):
    some = replace(config, model="convnet")
    assert expand(["all"], some) == (list(METHODS), [])
    mixed, left_out = expand(["sam:rho=0.1", "looksam", "all", "all", "sam", "sam:rho=0.1"], some)
    rest = [key for key in METHODS if key != "looksam"]
    assert (mixed, left_out) == (["sam:rho=0.1", "looksam", *rest], [])
    assert expand(["sam", "sam"], some) == (["sam", "sam"], [])  # for grid to refuse


def test_equal_cost_is_plain_training_that_costs_what_sam_costs(config):
    own = replace(config, recipe=config.recipe.replace(epochs=3, lr=0.15))
    plains = ["plain@epochs=6", "plain@lr=0.3", "plain@ema=0.999"]
    assert expand(["plain", "equal-cost", "sam"], own) == (["plain", *plains, "sam"], [])
    assert set(plains) < set(expand(["equal-cost", "all"], own)[0])
    runs = grid(own, ["plain", *plains], 1)
    assert [run.budget.limit / own.budget.limit for run in runs] == [1, 2, 1, 1]
    seconds = replace(own, budget=Budget(kind="seconds", limit=1.0))
    assert expand(["equal-cost"], seconds)[0] == plains[1:]
    averaged = replace(own, recipe=own.recipe.replace(ema=0.9))
    assert expand(["equal-cost"], averaged)[0] == plains[:2]


def test_all_leaves_out_aloud_what_cannot_work(config):
    kept, left_out = expand(["all"], config)  # a perceptron without normalization layers
    assert kept == [key for key in METHODS if key != "sam-on"]
    assert len(left_out) == 1
    assert left_out[0].startswith("all is without sam-on: the model must have a normalization layer")
    assert left_out[0].endswith(".")
    still = replace(config, recipe=config.recipe.replace(momentum=0.0, nesterov=False))
    kept, left_out = expand(["all"], still)
    assert [text.partition(":")[0] for text in left_out] == ["all is without sam-on", "all is without momentum-sam"]
    assert "momentum must be > 0" in left_out[1]


@pytest.mark.parametrize("method", ["sam-on", "late:inner=sam-on"])
def test_what_cannot_work_is_an_error_where_it_is_named(config, tmp_path, method):
    methods, left_out = expand([method, "all"], config)
    assert methods[0] == method
    assert left_out == [] or method != "sam-on"
    watch = Watch()
    with pytest.raises(ParameterError, match="the model must have a normalization layer"):
        compare(grid(config, ["plain", method], 1), tmp_path, watch)
    assert watch.begun == []
    assert list(tmp_path.iterdir()) == []


def test_a_check_leaves_random_numbers_alone(config):
    before = torch.get_rng_state()
    expand(["all"], config)
    assert torch.equal(before, torch.get_rng_state())


def test_a_name_says_what_a_reader_knows_and_a_hash_the_rest(config):
    name = run_name(config)
    assert re.fullmatch(r".*Rows-mlp-sam-seed0-[0-9a-f]{8}", name)
    other = run_name(replace(config, recipe=config.recipe.replace(lr=0.1)))
    assert other != name
    assert other[:-8] == name[:-8]
    assert run_name(replace(config, device="cpu", threads=1, tensorboard=True)) == name  # where it is carried out
    assert run_name(replace(config, task=Digits(noise=0.2))).startswith("digits_noise=0.2-mlp-sam-seed0-")


@pytest.mark.parametrize(("methods", "seeds", "rule"), [
    ([], 1, "methods must name at least one"),
    (["sam", "plain", "sam"], 1, "methods must differ, but sam is named twice"),
    (["sam"], 0, "seeds must be an integer >= 1, but is 0"),
])  # fmt: skip
def test_grids_that_are_none(config, methods, seeds, rule):
    with pytest.raises(ArgumentError, match=rule):
        grid(config, methods, seeds)


def test_after_an_interrupt_only_what_is_missing_is_done(config, tmp_path):
    runs = grid(config, ["plain", "sam"], 2)
    names = [run_name(c) for c in runs]
    first, second, third = Watch(stop=names[2]), Watch(), Watch()
    with pytest.raises(KeyboardInterrupt):
        compare(runs, tmp_path, first)
    assert first.done == names[:2]
    assert compare(runs, tmp_path, second) == [tmp_path / name for name in names]
    assert (second.kept, second.done) == (names[:2], names[2:])
    before = {name: (tmp_path / name / "run.jsonl").read_bytes() for name in names}
    compare(runs, tmp_path, third)
    assert third.kept == names
    assert before == {name: (tmp_path / name / "run.jsonl").read_bytes() for name in names}


def test_an_unfinished_run_is_resumed(config, tmp_path, kill):
    runs = grid(replace(config, checkpoint_every=4), ["sam"], 1)
    with kill(4):
        compare(runs, tmp_path, Watch())
    compare(runs, tmp_path, Watch())
    resumed = history(tmp_path / run_name(runs[0])).end
    compare(runs, tmp_path / "whole", Watch())
    assert resumed["weights_sha256"] == history(tmp_path / "whole" / run_name(runs[0])).end["weights_sha256"]


def test_another_recipe_is_another_run(config, tmp_path):
    (first,) = compare(grid(config, ["sam"], 1), tmp_path, Watch())
    watch = Watch()
    (other,) = compare(grid(replace(config, recipe=config.recipe.replace(lr=0.1)), ["sam"], 1), tmp_path, watch)
    assert watch.done == [other.name]
    assert first != other


def test_another_width_of_the_model_is_another_run(config, tmp_path):
    def net(width):
        return lambda: nn.Sequential(nn.Flatten(), nn.Linear(64, width), nn.ReLU(), nn.Linear(width, 3))

    narrow, wide = (replace(config, model=net(width)) for width in (4, 8))
    (first,) = compare(grid(narrow, ["sam"], 1), tmp_path, Watch())
    watch = Watch()
    compare(grid(wide, ["sam"], 1), tmp_path, watch)
    assert watch.kept == []
    again = Watch()
    compare(grid(narrow, ["sam"], 1), tmp_path, again)
    assert again.kept == [first.name]


def test_what_a_model_s_function_has_taken_from_around_it_makes_another_run(config, tmp_path):
    """The same code and the same shapes, but another dropout."""

    def net(rate):
        return lambda: nn.Sequential(nn.Flatten(), nn.Linear(64, 4), nn.Dropout(rate), nn.Linear(4, 3))

    names = [run_name(replace(config, model=net(rate))) for rate in (0.1, 0.5, 0.1)]
    assert names[0] == names[2] != names[1]


@pytest.mark.slow
def test_the_runs_of_a_seed_share_a_loader(config, tmp_path, monkeypatch):
    made = []
    real = Loader.__init__
    monkeypatch.setattr(
        Loader, "__init__", lambda self, *args, **named: (made.append(args), real(self, *args, **named))[1]
    )
    compare(grid(config, ["plain", "sam", "sampa"], 2), tmp_path, Watch())
    assert len(made) <= 6  # for 6 runs: a seed's lines, checks and trainings


def test_a_page_overwrites_no_other_comparison_s(config):
    pages = {
        page_name(grid(config, methods, seeds))
        for methods, seeds in ((["plain", "sam"], 2), (["plain", "sampa"], 2), (["plain", "sam"], 3))
    }
    assert len(pages) == 3
    assert page_name(grid(config, ["sam", "plain"], 2)) in pages  # whoever is named first


def test_one_method_spelled_in_two_ways_is_refused(config, tmp_path):
    with pytest.raises(ArgumentError, match=r"methods must differ, but sam and sam:rho=0\.05 are the same here"):
        compare(grid(config, ["sam", "sam:rho=0.05"], 1), tmp_path, Watch())


def test_an_unknown_method_is_refused_before_anything_is_trained(config, tmp_path):
    watch = Watch()
    with pytest.raises(UnknownNameError, match="did you mean 'looksam'"):
        compare(grid(config, ["plain", "looksma"], 1), tmp_path, watch)
    assert watch.begun == []


def test_the_default_budget_is_what_plain_takes(config, tmp_path):
    assert budget("steps", None, config, tmp_path) == Budget(kind="steps", limit=12)
    assert budget("gradients", None, config, tmp_path) == Budget(kind="gradients", limit=12)
    assert budget("seconds", 9.5, config, tmp_path) == Budget(kind="seconds", limit=9.5)


def test_the_default_seconds_are_measured_once(config, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "_plain_step", lambda config: 0.0123456)
    limit = budget("seconds", None, config, tmp_path)
    assert limit == Budget(kind="seconds", limit=0.148)
    compare(grid(replace(config, budget=limit), ["sam"], 1), tmp_path, Watch())
    monkeypatch.setattr(module, "_plain_step", lambda config: pytest.fail("measured again"))
    assert budget("seconds", None, config, tmp_path) == limit


def test_the_measured_seconds_are_found_in_runs_with_a_recipe_of_their_own(config, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "_plain_step", lambda config: 0.001)
    limit = budget("seconds", None, config, tmp_path)
    compare(grid(replace(config, budget=limit), ["adasam"], 1), tmp_path, Watch())
    monkeypatch.setattr(module, "_plain_step", lambda config: pytest.fail("measured again"))
    assert budget("seconds", None, config, tmp_path) == limit


def test_a_plain_step_takes_time(config):
    assert 0 < module._plain_step(config) < 10
