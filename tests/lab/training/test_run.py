from __future__ import annotations

import json
import os
import signal
import time
from dataclasses import replace

import pytest
import torch

from lowland.core.errors import ArgumentError, StateError, UnknownNameError
from lowland.lab.budget import Budget
from lowland.lab.tasks.digits import Digits
from lowland.lab.training import checkpoint, run
from lowland.lab.training.progress import LabWarning
from lowland.lab.training.run import train
from lowland.lab.training.signals import Stopped


def lines(folder, kind=None):
    found = [json.loads(line) for line in (folder / "run.jsonl").read_text().splitlines()]
    return [line for line in found if kind in (None, line["kind"])]


def weights(folder):
    tensors = checkpoint.load(checkpoint.latest(folder, pytest.fail))[1]
    return {name: t for name, t in tensors.items() if name.startswith("model/")}


def test_a_run_learns_and_writes_its_file(config, tmp_path):
    end = train(config, tmp_path / "a", command=["lowland", "train"])
    first = lines(tmp_path / "a")[0]
    assert [line["kind"] for line in lines(tmp_path / "a")] == ["config", "epoch", "epoch", "end"]
    assert first["method"] == {
        "key": "sam", "class": "SAM", "text": "sam",
        "fields": {"rho": 0.05, "geometry": "l2", "ascent_gradient": "mean"}
    }  # fmt: skip
    assert first["steps_per_epoch"] == 6
    assert first["budget"] == {"kind": "steps", "limit": 12}
    assert first["command"] == ["lowland", "train"]
    assert first["parameters"] == sum(t.numel() for t in weights(tmp_path / "a").values())
    assert lines(tmp_path / "a", "end") == [end]
    assert end["step"] == 12
    assert end["epochs"] == 2
    assert end["gradients_per_step"] == end["sequential_per_step"] == 2
    assert end["test"]["accuracy"] > 0.6
    assert 0 < end["m_sharpness"] < 1
    assert end["peak_memory"] > 4 * 4 * first["parameters"]  # weights, momentum, gradient and SAM's copy
    assert 0 < end["seconds_per_step"] < end["seconds"]


def test_methods_share_initialization_and_data(config, tmp_path):
    plain = train(replace(config, method="plain"), tmp_path / "plain")
    still = train(replace(config, method="sam:rho=0"), tmp_path / "still")
    other = train(replace(config, method="plain", seed=1), tmp_path / "other")
    assert plain["weights_sha256"] == still["weights_sha256"]  # SAM with rho = 0 is the base optimizer
    assert plain["weights_sha256"] != other["weights_sha256"]


@pytest.mark.slow
@pytest.mark.parametrize(("share", "fewest", "most"), [(0.02, 2, 2), (1e9, 12, 13)])
def test_checkpoints_take_their_share_of_the_time(config, tmp_path, monkeypatch, share, fewest, most):
    real, saved = checkpoint.save, []

    def slow(*args, **options):
        time.sleep(0.1)
        saved.append(options["step"])
        return real(*args, **options)

    monkeypatch.setattr("lowland.lab.training.run.checkpoint.save", slow)
    monkeypatch.setattr("lowland.lab.training.run.SAVE_SECONDS", 0.0)
    monkeypatch.setattr("lowland.lab.training.run.SAVE_FRACTION", share)
    train(replace(config, checkpoint_every=None), tmp_path)
    assert fewest <= len(saved) <= most  # one at once, since none was slow yet, and one at the end
    assert (saved[0], saved[-1]) == (1, 12)


def test_a_display_changes_nothing(config, tmp_path, monkeypatch):
    monkeypatch.setattr("lowland.lab.training.run.PROGRESS_SECONDS", 0.0)
    updates = []
    silent = train(config, tmp_path / "silent")
    shown = train(config, tmp_path / "shown", progress=updates.append)
    assert silent["weights_sha256"] == shown["weights_sha256"]
    assert [u.step for u in updates] == list(range(1, 13))
    assert updates[0].score is None
    assert updates[-1].score.startswith("test accuracy ")
    assert updates[-1].fraction == 1


@pytest.mark.slow
@pytest.mark.parametrize("model", ["mlp", "convnet"])
@pytest.mark.parametrize("method", ["plain", "sampa", "looksam:k=3", "arsam:window=4,warmup=2", "micro-sam:m=3"])
def test_resume_in_the_middle_of_an_epoch(config, tmp_path, kill, method, model):
    config = replace(config, method=method, model=model, checkpoint_every=4)  # 4 is mid-epoch and mid-cycle
    whole = train(config, tmp_path / "whole")
    with kill(4):
        train(config, tmp_path / "killed")
    again = train(config, tmp_path / "killed", resume=True)
    assert lines(tmp_path / "killed", "resumed")[0]["step"] == 4
    assert again["weights_sha256"] == whole["weights_sha256"]
    same = (
        "train_loss",
        "train",
        "test",
        "gradients",
        "sequential",
        "lr",
        "peak_memory",
    )
    for a, b in zip(lines(tmp_path / "whole", "epoch"), lines(tmp_path / "killed", "epoch"), strict=True):
        assert {k: a[k] for k in same} == {k: b[k] for k in same}
    assert again["m_sharpness"] == whole["m_sharpness"]


@pytest.mark.slow
def test_resume_of_what_was_killed_before_its_first_checkpoint(config, tmp_path):
    whole = train(config, tmp_path / "whole")
    folder = tmp_path / "killed"
    folder.mkdir()
    first = (tmp_path / "whole" / "run.jsonl").read_bytes().split(b"\n")[0]
    (folder / "run.jsonl").write_bytes(first + b'\n{"kind":"epo')
    assert train(config, folder, resume=True)["weights_sha256"] == whole["weights_sha256"]
    assert lines(folder)[0]["kind"] == "config"  # and every line is whole


def test_resume_of_a_finished_run_does_nothing(config, tmp_path):
    end = train(config, tmp_path)
    before = (tmp_path / "run.jsonl").read_bytes()
    assert train(config, tmp_path, resume=True) == end
    assert (tmp_path / "run.jsonl").read_bytes() == before


def test_a_torn_line_is_cut_before_going_on(config, tmp_path, kill):
    with kill(4):
        train(replace(config, checkpoint_every=4), tmp_path)
    with (tmp_path / "run.jsonl").open("ab") as file:
        file.write(b'{"kind":"epoch","epo')
    train(replace(config, checkpoint_every=4), tmp_path, resume=True)
    assert [line["kind"] for line in lines(tmp_path)] == ["config", "resumed", "epoch", "epoch", "end"]


@pytest.mark.slow
@pytest.mark.parametrize("content", [b"", b"garbage", None])
def test_a_damaged_checkpoint_gives_way_to_the_previous_one(config, tmp_path, kill, content):
    config = replace(config, checkpoint_every=2)
    whole = train(config, tmp_path / "whole")
    with kill(4):
        train(config, tmp_path / "killed")
    last = tmp_path / "killed" / "checkpoints" / "step-000000004" / "state.pt"
    last.write_bytes(last.read_bytes()[:-100] if content is None else content)
    with pytest.warns(LabWarning, match="step-000000004 is damaged.*going on from the previous one"):
        again = train(config, tmp_path / "killed", resume=True)
    assert again["weights_sha256"] == whole["weights_sha256"]
    assert lines(tmp_path / "killed", "resumed")[0]["step"] == 2
    assert "damaged" in lines(tmp_path / "killed", "warning")[0]["message"]


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_lets_the_step_finish_and_saves(config, tmp_path, monkeypatch, signum):
    monkeypatch.setattr("lowland.lab.training.run.PROGRESS_SECONDS", 0.0)
    before = signal.getsignal(signum)

    def interrupt(update):
        if update.step == 3:
            os.kill(os.getpid(), signum)

    with pytest.raises(Stopped) as stop:
        train(config, tmp_path / "a", progress=interrupt)
    assert stop.value.signum == signum
    assert signal.getsignal(signum) is before
    whole = train(config, tmp_path / "whole")
    again = train(config, tmp_path / "a", resume=True)
    assert lines(tmp_path / "a", "resumed")[0]["step"] == 4
    assert again["weights_sha256"] == whole["weights_sha256"]


@pytest.mark.parametrize(
    ("change", "name", "recorded", "asked"),
    [
        ({"method": "sampa"}, "method", "'sam'", "'sampa'"),
        ({"method": "sam:rho=0.1"}, "method.rho", "0.05", "0.1"),
        ({"model": "convnet"}, "model", "'mlp'", "'convnet'"),
        ({"seed": 3}, "seed", "0", "3"),
        ({"budget": Budget(limit=13)}, "budget.limit", "12", "13"),
        ({"task": Digits(noise=0.25)}, "task", "'[^']*:Rows'", "'digits:noise=0.25'"),
        ({"validation": 0.2}, "validation", "0.0", "0.2"),
    ],
)
def test_resume_with_another_configuration(config, tmp_path, change, name, recorded, asked):
    train(config, tmp_path)
    said = f"{name} must be {recorded}, as in the run in {tmp_path}, but is {asked}; .*remove that folder"
    with pytest.raises(StateError, match=f"^{said}"):
        train(replace(config, **change), tmp_path, resume=True)


def test_resume_with_another_recipe(config, tmp_path):
    train(config, tmp_path)
    with pytest.raises(StateError, match=r"recipe\.lr must be 0\.05, .* but is 0\.1;"):
        train(replace(config, recipe=config.recipe.replace(lr=0.1)), tmp_path, resume=True)


def test_checkpoints_that_lost_their_run_file_belong_to_no_other_run(config, tmp_path):
    train(config, tmp_path)
    (tmp_path / "run.jsonl").unlink()
    for resume in (False, True):
        with pytest.raises(StateError, match=r"recipe\.lr must be 0\.05, .* but is 0\.1; .*remove that folder"):
            train(replace(config, recipe=config.recipe.replace(lr=0.1)), tmp_path, resume=resume)


@pytest.mark.parametrize(
    ("method", "kind", "steps", "gradients"),
    [
        ("late", "steps", 20, 18 + 2 * 2),  # from step 18 of 20 on
        ("late", "gradients", 19, 18 + 2),  # 18 plain steps are 0.9 of 20 gradients, and one of SAM is the rest
        ("late:start=0.5", "gradients", 15, 10 + 5 * 2),
        ("arsam:p_max=0,window=99,warmup=0.5", "gradients", 15, 5 * 2 + 10),  # the window's one step of SAM comes later
        ("ae-sam:l1=-inf,l2=1", "steps", 20, None),
    ],
)
def test_lengths_are_fractions_of_the_budget(config, tmp_path, method, kind, steps, gradients):
    """By hand, whatever the recipe's epochs are."""
    end = train(replace(config, method=method, budget=Budget(kind=kind, limit=20)), tmp_path)
    assert end["step"] == steps
    if gradients is not None:
        assert end["gradients_per_step"] * steps == pytest.approx(gradients)


@pytest.mark.parametrize("kind", ["steps", "gradients", "seconds"])
def test_the_engine_goes_by_the_fraction_of_the_budget(config, tmp_path, monkeypatch, kind):
    seen = []
    real = run.Trainer.step

    def step(self, batch, fraction):
        loss = real(self, batch, fraction)
        seen.append((self.engine.progress, fraction))
        return loss

    monkeypatch.setattr(run.Trainer, "step", step)
    train(replace(config, budget=Budget(kind=kind, limit=0.5 if kind == "seconds" else 12)), tmp_path)
    assert all(progress == fraction for progress, fraction in seen)
    assert seen[-1][1] > 0.5


def test_a_run_is_not_overwritten(config, tmp_path):
    train(config, tmp_path)
    with pytest.raises(StateError, match="go on with --resume"):
        train(config, tmp_path)


def test_an_unwritable_folder_is_refused_before_training(config, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setattr("lowland.lab.training.run.Trainer.step", lambda *_: pytest.fail("trained"))
    with pytest.raises(ArgumentError, match=r"out must be a folder .*file/run cannot be .*; choose another --out"):
        train(config, tmp_path / "file" / "run")


def test_unknown_names(config, tmp_path):
    with pytest.raises(UnknownNameError, match="did you mean 'sampa'"):
        train(replace(config, method="sanpa"), tmp_path)
    with pytest.raises(UnknownNameError, match="did you mean 'mlp'"):
        train(replace(config, model="mpl"), tmp_path)
    with pytest.raises(ArgumentError, match=r"task must be a lowland\.lab\.Task, but is 'digits'; make a task"):
        replace(config, task="digits")
    assert list(tmp_path.iterdir()) == []


def test_a_budget_of_gradients_is_spent_equally(config, tmp_path):
    budget = Budget(kind="gradients", limit=12)
    ends = {m: train(replace(config, method=m, budget=budget), tmp_path / m) for m in ("plain", "sam")}
    assert {m: end["step"] for m, end in ends.items()} == {"plain": 12, "sam": 6}
    assert all(lines(tmp_path / m, "epoch")[-1]["gradients"] == 12 for m in ends)
    rates = lines(tmp_path / "sam", "epoch")[-1]["lr"], lines(tmp_path / "plain", "epoch")[-1]["lr"]
    assert all(lr < config.recipe.lr / 3 for lr in rates)  # both have come down the whole schedule


def test_a_budget_of_seconds_ends_on_time(config, tmp_path, monkeypatch):
    ticks = iter(range(10**6))
    monkeypatch.setattr("lowland.lab.training.clock.time.perf_counter", lambda: float(next(ticks)))
    end = train(replace(config, budget=Budget(kind="seconds", limit=5)), tmp_path)
    assert end["seconds"] >= 5
    assert end["step"] < 12


def test_a_budget_that_ends_in_the_middle_of_an_epoch(config, tmp_path):
    end = train(replace(config, budget=Budget(limit=8)), tmp_path)
    assert end["step"] == 8
    assert [line["step"] for line in lines(tmp_path, "epoch")] == [6, 8]


def test_clipping_and_precision_reach_the_step(config, tmp_path):
    usual = train(config, tmp_path / "usual")
    for change in ({"clip": 1e-3}, {"precision": "bf16"}, {"label_smoothing": 0.2}):
        recipe = config.recipe.replace(**change)
        other = train(replace(config, recipe=recipe), tmp_path / str(change))
        assert other["weights_sha256"] != usual["weights_sha256"]
        assert other["test"]["loss"] < 3


@pytest.mark.slow
def test_threads_hold_for_the_run_only(config, tmp_path):
    before = torch.get_num_threads()
    train(replace(config, threads=before + 1), tmp_path)
    assert torch.get_num_threads() == before
    assert lines(tmp_path)[0]["machine"]["threads"] == before + 1


def test_event_files(config, tmp_path):
    pytest.importorskip("tensorboard")
    train(replace(config, tensorboard=True), tmp_path)
    files = list((tmp_path / "events").iterdir())
    assert len(files) == 1
    assert b"test/accuracy" in files[0].read_bytes()
