"""Runs on several ranks: the same training, resumed on other numbers of them, and what makes them stop together."""

from __future__ import annotations

import json
import os
import re
import signal
import warnings
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from ranks import on_ranks
from safetensors.torch import load_file

import lowland
from lowland.core.errors import LowlandError, StateError
from lowland.lab.budget import Budget
from lowland.lab.config import RunConfig
from lowland.lab.data.images import Augmentation, ImageSet
from lowland.lab.recipe import Recipe
from lowland.lab.tasks.classification import Classification
from lowland.lab.training import checkpoint, run
from lowland.lab.training.progress import LabWarning
from lowland.lab.training.signals import Stopped


@dataclass(frozen=True, kw_only=True)
class Rows(Classification):
    shape: ClassVar[tuple[int, int, int]] = (1, 8, 8)
    classes: ClassVar[int] = 3

    def images(self, root: Path | None) -> ImageSet:
        draw = torch.Generator().manual_seed(1)
        targets = torch.randint(3, (71,), generator=draw)
        pixels = torch.randint(0, 120, (71, 1, 8, 8), generator=draw, dtype=torch.uint8)
        pixels[torch.arange(71), 0, targets * 2] += 100
        return ImageSet(
            name="rows", train_inputs=pixels[:51], train_targets=targets[:51], clean_targets=targets[:51],
            test_inputs=pixels[51:], test_targets=targets[51:], classes=3, mean=(60.0,), std=(40.0,),
            augmentation=Augmentation(padding=1),
        )  # fmt: skip


RECIPE = Recipe(lr=0.05, epochs=2, batch_size=8)
BASE = RunConfig(task=Rows(), model="mlp", method="sampa", seed=0, recipe=RECIPE, budget=Budget(limit=12), device="cpu")
MESHES = [
    {"mesh": "probe=2"},
    {"mesh": "data=2"},
    {"mesh": "data=2", "shard": True},
    {"mesh": "replicate=2"},
]


class Kill(Exception):  # noqa: N818 - no error of the library
    """All ranks die at once, right after a checkpoint."""


@contextmanager
def several() -> Any:
    """What torchrun tells its processes."""
    rank, size = torch.distributed.get_rank(), torch.distributed.get_world_size()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RANK", str(rank))
        patch.setenv("WORLD_SIZE", str(size))
        yield patch


def trained(folder: Path, changes: dict[str, Any], deadly: int | None = None, resume: bool = False) -> Any:
    """Train on all ranks; they die after the checkpoint at step ``deadly``."""
    if not torch.distributed.is_initialized():
        return _trained(folder, changes, deadly, resume)
    with several():
        return _trained(folder, changes, deadly, resume)


def _trained(folder: Path, changes: dict[str, Any], deadly: int | None, resume: bool) -> Any:
    real = checkpoint.save

    def save(*args: Any, step: int, **options: Any) -> None:
        real(*args, step=step, **options)
        if step == deadly:
            raise Kill

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(run.checkpoint, "save", save)
        try:
            return run.train(replace(BASE, **changes), folder, resume=resume)
        except Kill:
            return None


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "checkpoints" / "step-000000012" / "weights.safetensors")


def assert_near(folder: Path, other: Path) -> None:
    for name, value in weights(other).items():
        torch.testing.assert_close(weights(folder)[name], value, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("changes", MESHES, ids=str)
@pytest.mark.parametrize("method", ["sampa", "looksam:k=3", "micro-sam:m=2"])
def test_ranks_train_as_one_process_does(tmp_path: Path, changes: dict[str, Any], method: str) -> None:
    if changes["mesh"] == "probe=2" and method.startswith("looksam"):
        pytest.skip("asks for one probe at a time, and warns")
    if changes["mesh"] != "probe=2" and method.startswith("micro-sam"):
        pytest.skip("perturbs for other shards than one process")
    alone = trained(tmp_path / "alone", {"method": method})
    ends = on_ranks(2, trained, tmp_path / "ranks", {"method": method, **changes})
    assert ends[0]["weights_sha256"] == ends[1]["weights_sha256"]
    assert ends[0]["test"]["accuracy"] == alone["test"]["accuracy"]
    assert_near(tmp_path / "ranks", tmp_path / "alone")
    lines = (tmp_path / "ranks" / "run.jsonl").read_text().splitlines()
    assert [line.split('"')[3] for line in lines] == ["config", "epoch", "epoch", "end"]  # one rank writes


CASES = {
    "looksam, mid-cycle, sharded": {"method": "looksam:k=3", "mesh": "data=4", "shard": True},
    "sampa, held batch, sharded": {"method": "sampa", "mesh": "data=4", "shard": True},
    "sampa, two groups of two": {"method": "sampa", "mesh": "probe=2,data=2", "shard": True},
    # Few candidates, between whose losses no rounding decides.
    "xsam, between searches, sharded": {"method": "xsam:every=4,alpha_delta=1", "mesh": "data=4", "shard": True},
    "adam": {"method": "sam", "mesh": "data=4", "shard": True, "recipe": RECIPE.replace(optimizer="adamw", lr=1e-3)},
}


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_a_checkpoint_of_four_ranks_goes_on_on_four_two_and_one(tmp_path: Path, name: str) -> None:
    changes = CASES[name] | {"checkpoint_every": 5}
    whole = on_ranks(4, trained, tmp_path / "whole", changes)[0]
    for count in (4, 2, 1):
        folder = tmp_path / str(count)
        on_ranks(4, trained, folder, changes, 5)
        assert sorted(p.name for p in (folder / "checkpoints").iterdir()) == ["step-000000005"]
        if count == 1:
            resumed(folder, changes)
            told = (folder / "run.jsonl").read_text()
            assert "begun with ranks 4 and resumed with 1: the bits may differ" in told
            assert "everything that sees one part of a batch at a time, because the parts differ: BatchNorm" in told
        else:
            meshes = {2: {"mesh": "data=2"}, 4: {}}
            ends = on_ranks(count, resumed, folder, changes | meshes[count])
            if count == 4:
                assert ends[0]["weights_sha256"] == whole["weights_sha256"]
        assert_near(folder, tmp_path / "whole")
        assert losses(folder) == pytest.approx(losses(tmp_path / "whole"), rel=1e-6)


def losses(folder: Path) -> list[float]:
    """The training loss of every epoch."""
    lines = map(json.loads, (folder / "run.jsonl").read_text().splitlines())
    return [line["train_loss"] for line in lines if line["kind"] == "epoch"]


def test_from_two_groups_to_one_process_no_example_counts_twice(tmp_path: Path) -> None:
    changes = {"mesh": "probe=2", "checkpoint_every": 5}
    on_ranks(2, trained, tmp_path / "ranks", changes, 5)
    resumed(tmp_path / "ranks", {"checkpoint_every": 5})
    trained(tmp_path / "whole", {})
    assert losses(tmp_path / "ranks") == pytest.approx(losses(tmp_path / "whole"), rel=1e-6)


def test_sums_are_neither_lost_nor_doubled_between_numbers_of_ranks() -> None:
    shares = [{"sums": torch.full((3,), float(i)), "counts": torch.ones(3), "t": 4} for i in (1, 2, 3, 4)]
    reshared = lowland.AUSAM(examples=3).reshard
    two = [reshared(shares, number, 2) for number in range(2)]
    assert [share["t"] for share in two] == [4, 4]
    assert torch.equal(sum(share["sums"] for share in two), torch.full((3,), 10.0))
    assert torch.equal(reshared(two, 0, 1)["sums"], torch.full((3,), 10.0))


def test_scores_are_the_same_for_examples_seen_once_and_often_when_shares_are_cut() -> None:
    model, method = torch.nn.Linear(2, 2), lowland.AUSAM(examples=2, alpha=0.5)
    engine = lowland.Engine(method, model, torch.optim.SGD(model.parameters(), 0.1))
    share = method.reshard([{"sums": torch.tensor([0.8, 3.2]), "counts": torch.tensor([1.0, 4.0]), "t": 4}], 0, 4)
    engine.memory.update({k: v for k, v in share.items() if k in ("sums", "counts")})
    drawn = [int(method._draw(engine, torch.arange(2), 1, 99)) for _ in range(200)]
    assert 70 < sum(drawn) < 130


def fractions(folder: Path, deadly: int | None, resume: bool) -> list[float]:
    """How much of a budget in seconds was spent before every step."""
    found: list[float] = []

    class Watched(run.Trainer):
        def step(self, batch: Any, fraction: float) -> Any:
            found.append(fraction)
            return super().step(batch, fraction)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(run, "Trainer", Watched)
        patch.setattr(run, "rehearse", lambda make, loader: 0)
        # So many seconds that a slow machine does not spend them: the training ends by what is deadly.
        changes = {"mesh": "data=2", "budget": Budget(kind="seconds", limit=60.0), "checkpoint_every": 3}
        trained(folder, changes, deadly, resume)
    return found


def test_seconds_that_are_spent_stay_spent_after_a_return_to_a_checkpoint(tmp_path: Path) -> None:
    for deadly, resume in ((3, False), (6, True)):
        for found in on_ranks(2, fractions, tmp_path, deadly, resume):
            assert found == sorted(found)
            assert (found[0] > 0) is resume


def test_torchrun_goes_on_by_itself_with_what_it_began(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "first")
    trained(tmp_path, {"checkpoint_every": 5}, 5)
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "1")
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "second")
    with pytest.raises(StateError, match="out must be a folder without this run"):
        trained(tmp_path, {"checkpoint_every": 5})
    trained(tmp_path, {"checkpoint_every": 5}, 10, True)  # with --resume, it becomes its own
    assert trained(tmp_path, {"checkpoint_every": 5})["step"] == 12


def resumed(folder: Path, changes: dict[str, Any]) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", LabWarning)  # about the number of ranks
        return trained(folder, changes, None, True)


def refusal(folder: Path, changes: dict[str, Any], everywhere: bool) -> str:
    """What this rank is told, where rank 1 alone, or all ranks, have these changes."""
    try:
        trained(folder, changes if everywhere or torch.distributed.get_rank() == 1 else {})
    except LowlandError as error:
        return f"{type(error).__name__}: {error}"
    return "nothing"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"method": "sampa:rho=0.3"}, "method must be the same on all ranks, but is .*rank 1"),
        ({"seed": 3}, "seed must be the same on all ranks, but is 3 on rank 1 and 0 on rank 0"),
        ({"recipe": RECIPE.replace(batch_size=4)}, "recipe must be the same on all ranks"),
        ({"model": "convnet"}, "model must be the same on all ranks, but is 'convnet' on rank 1"),
    ],
)
def test_ranks_that_disagree_are_told(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    for told in on_ranks(2, refusal, tmp_path / "run", changes, False):
        assert re.search(f"RankError: .*{message}", told), told
    assert not (tmp_path / "run").exists()


def test_a_mesh_that_does_not_fit(tmp_path: Path) -> None:
    for told in on_ranks(2, refusal, tmp_path / "run", {"mesh": "probe=2,data=2"}, True):
        assert "mesh must have as many places as there are ranks, but probe=2,data=2 has 4 and torchrun" in told


def stopped(folder: Path) -> str:
    """Rank 1 alone receives SIGTERM, at its fourth step."""
    with several() as patch:
        real = run.Trainer.step

        def step(self: Any, *args: Any) -> Any:
            if torch.distributed.get_rank() == 1 and self.engine.step == 3 and folder.exists():
                os.kill(os.getpid(), signal.SIGTERM)
            return real(self, *args)

        patch.setattr(run.Trainer, "step", step)
        patch.setattr(run, "rehearse", lambda *args: 0)
        try:
            run.train(replace(BASE, mesh="probe=2"), folder)
        except Stopped as stop:
            return f"{stop.signum} at {len(list((folder / 'checkpoints').iterdir()))}"
    return "went on"


def test_a_signal_to_one_rank_stops_all_at_the_same_step(tmp_path: Path) -> None:
    whole = on_ranks(2, trained, tmp_path / "whole", {"mesh": "probe=2"})[0]
    assert on_ranks(2, stopped, tmp_path / "run") == ["15 at 1"] * 2
    again = on_ranks(2, trained, tmp_path / "run", {"mesh": "probe=2"}, None, True)
    assert [end["weights_sha256"] for end in again] == [whole["weights_sha256"]] * 2
