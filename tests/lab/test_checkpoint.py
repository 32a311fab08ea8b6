from __future__ import annotations

import os

import pytest
import torch

from lowland.errors import StateError
from lowland.lab import checkpoint


def names(folder):
    return sorted(path.name for path in (folder / "checkpoints").iterdir())


def fill(folder, *steps, keep=2):
    for step in steps:
        checkpoint.save(folder, {"step": step, "weights": torch.full((3,), float(step))}, step=step, keep=keep)


def test_what_is_saved_comes_back(tmp_path):
    state = {"a": torch.arange(3), "b": [1, 2.5, None, ("x", True)], "c": {"d": torch.zeros((), dtype=torch.bfloat16)}}
    found = checkpoint.load(checkpoint.save(tmp_path, state, step=7))
    assert torch.equal(found["a"], state["a"])
    assert found["b"] == state["b"]
    assert found["c"]["d"].dtype == torch.bfloat16


def test_the_last_ones_are_kept(tmp_path):
    fill(tmp_path, 1, 2, 3)
    assert names(tmp_path) == ["step-000000002.pt", "step-000000003.pt"]
    assert checkpoint.latest(tmp_path, pytest.fail)["step"] == 3
    fill(tmp_path, 10, keep=1)
    assert names(tmp_path) == ["step-000000010.pt"]


def test_nothing_was_ever_saved(tmp_path):
    assert checkpoint.latest(tmp_path, pytest.fail) is None


def test_a_write_that_fails_halfway_leaves_the_old_ones(tmp_path, monkeypatch):
    fill(tmp_path, 1)

    def no_space(handle):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", no_space)
    with pytest.raises(StateError, match=r"No space left on device.*make room.*--resume"):
        fill(tmp_path, 2)
    monkeypatch.undo()
    assert checkpoint.latest(tmp_path, pytest.fail)["step"] == 1
    fill(tmp_path, 3)
    assert names(tmp_path) == ["step-000000001.pt", "step-000000003.pt"]  # what was left half written is gone


def damage_cut(content):
    return content[: len(content) // 2]


def damage_bit(content):
    middle = len(content) // 2
    return content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :]


@pytest.mark.parametrize(
    "damage", [damage_cut, damage_bit, lambda _: b"", lambda _: b"garbage" * 99, lambda c: c + b"x"]
)
def test_every_damage_is_noticed(tmp_path, damage):
    fill(tmp_path, 1, 2)
    path = tmp_path / "checkpoints" / "step-000000002.pt"
    path.write_bytes(damage(path.read_bytes()))
    warnings = []
    assert checkpoint.latest(tmp_path, warnings.append)["step"] == 1
    assert len(warnings) == 1
    assert f"{path} is damaged" in warnings[0]
    assert "step-000000001.pt" in warnings[0]
    # set aside, so that it does not count among those that are kept
    fill(tmp_path, 3)
    assert names(tmp_path) == ["step-000000001.pt", "step-000000002.pt.damaged", "step-000000003.pt"]


def test_all_damaged(tmp_path):
    fill(tmp_path, 1, 2)
    for path in (tmp_path / "checkpoints").iterdir():
        path.write_bytes(b"garbage")
    for _ in range(2):  # the second time, too, instead of silently starting anew
        with pytest.raises(StateError, match=r"all 2 checkpoints in .* are damaged; remove .* and start"):
            checkpoint.latest(tmp_path, pytest.fail)


def test_code_in_a_checkpoint_does_not_run(tmp_path):
    class Evil:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "evil"),)

    path = checkpoint.save(tmp_path, {"x": Evil()}, step=1)
    with pytest.raises(Exception, match=r"weights_only|Weights only"):
        checkpoint.load(path)
    assert not (tmp_path / "evil").exists()
