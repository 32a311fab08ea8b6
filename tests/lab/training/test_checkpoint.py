from __future__ import annotations

import json
import os
import shutil

import pytest
import torch
from safetensors.torch import load_file

from lowland.core.errors import StateError
from lowland.lab.training import checkpoint


def names(folder):
    return sorted(path.name for path in (folder / "checkpoints").iterdir())


def fill(folder, *steps, keep=2):
    for step in steps:
        weights = {"model/w": torch.full((3,), float(step)), "optimizer/w/step": torch.tensor(step)}
        checkpoint.save(folder, {"step": step}, weights, step=step, keep=keep)


def newest(folder, warn=pytest.fail):
    path = checkpoint.latest(folder, warn)
    state, tensors = checkpoint.load(path)
    assert tensors["optimizer/w/step"] == state["step"]
    assert torch.equal(tensors["model/w"], torch.full((3,), float(state["step"])))
    return state["step"]


def test_what_is_saved_comes_back(tmp_path):
    state = {"a": torch.arange(3), "b": [1, 2.5, None, ("x", True)], "c": {"d": torch.zeros((), dtype=torch.bfloat16)}}
    tied = torch.randn(2, 3, dtype=torch.float64)
    tensors = {"model/a.weight": tied, "model/b.weight": tied, "engine/g_v/a.weight": torch.randn(2, 3)}
    path = checkpoint.save(tmp_path, state, tensors, step=7)
    checkpoint.check(path)
    found, read = checkpoint.load(path)
    assert torch.equal(found["a"], state["a"])
    assert found["b"] == state["b"]
    assert found["c"]["d"].dtype == torch.bfloat16
    assert read.keys() == tensors.keys()
    assert all(torch.equal(read[name], tensors[name]) and read[name].dtype == tensors[name].dtype for name in tensors)
    weights = load_file(path / "weights.safetensors")
    assert weights.keys() == {"a.weight", "b.weight"}
    assert torch.equal(weights["b.weight"], tied)


def test_the_last_ones_are_kept(tmp_path):
    fill(tmp_path, 1, 2, 3)
    assert names(tmp_path) == ["step-000000002", "step-000000003"]
    assert newest(tmp_path) == 3
    fill(tmp_path, 10, keep=1)
    assert names(tmp_path) == ["step-000000010"]


def test_the_same_step_twice(tmp_path):
    fill(tmp_path, 1, 2, 2)
    assert names(tmp_path) == ["step-000000001", "step-000000002"]
    assert newest(tmp_path) == 2


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
    assert newest(tmp_path) == 1
    fill(tmp_path, 3)
    assert names(tmp_path) == ["step-000000001", "step-000000003"]  # what was left half written is gone


def test_a_kill_before_the_name_appears(tmp_path, monkeypatch):
    fill(tmp_path, 1)

    def killed(*paths):
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", killed)
    with pytest.raises(KeyboardInterrupt):
        fill(tmp_path, 2)
    monkeypatch.undo()
    assert newest(tmp_path) == 1


@pytest.mark.parametrize("renames", [0, 1])
def test_a_kill_while_the_only_step_is_saved_again(tmp_path, monkeypatch, renames):
    fill(tmp_path, 7, keep=1)
    real, left = os.replace, [renames]

    def killed(*paths):
        if not left[0]:
            raise KeyboardInterrupt
        left[0] -= 1
        real(*paths)

    monkeypatch.setattr(os, "replace", killed)
    with pytest.raises(KeyboardInterrupt):
        fill(tmp_path, 7, keep=1)
    monkeypatch.undo()
    assert newest(tmp_path) == 7
    fill(tmp_path, 8, keep=1)
    assert names(tmp_path) == ["step-000000008"]


def test_half_a_first_checkpoint_is_none(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "replace", lambda *paths: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        fill(tmp_path, 7)
    monkeypatch.undo()
    (tmp_path / "checkpoints" / "step-000000007.tmp" / "state.pt").write_bytes(b"")
    assert checkpoint.latest(tmp_path, pytest.fail) is None


def test_a_step_that_is_damaged_again(tmp_path):
    told = []
    for _ in range(2):
        fill(tmp_path, 1, 2)
        (tmp_path / "checkpoints" / "step-000000002" / "state.pt").unlink()
        assert newest(tmp_path, told.append) == 1
    assert len(told) == 2


def damage_cut(content):
    return content[: len(content) // 2]


def damage_bit(content):
    middle = len(content) // 2
    return content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :]


@pytest.mark.parametrize(
    "damage", [damage_cut, damage_bit, lambda _: b"", lambda _: b"garbage" * 99, lambda c: c + b"x"]
)
@pytest.mark.parametrize("file", ["__0_0.distcp", ".metadata", "state.pt", "weights.safetensors", "manifest.json"])
def test_every_damage_is_noticed(tmp_path, damage, file):
    fill(tmp_path, 1, 2)
    path = tmp_path / "checkpoints" / "step-000000002"
    (path / file).write_bytes(damage((path / file).read_bytes()))
    warnings = []
    assert newest(tmp_path, warnings.append) == 1
    assert len(warnings) == 1
    assert f"{path} is damaged" in warnings[0]
    assert file in warnings[0] or file == "manifest.json"  # a bit of a checksum in it blames another file
    assert "step-000000001" in warnings[0]
    # set aside, so that it does not count among those that are kept
    fill(tmp_path, 3)
    assert names(tmp_path) == ["step-000000001", "step-000000002.damaged", "step-000000003"]


@pytest.mark.parametrize("file", ["__0_0.distcp", ".metadata", "state.pt", "manifest.json"])
def test_a_missing_file_is_noticed(tmp_path, file):
    fill(tmp_path, 1, 2)
    (tmp_path / "checkpoints" / "step-000000002" / file).unlink()
    assert newest(tmp_path, lambda told: None) == 1


def test_all_damaged(tmp_path):
    fill(tmp_path, 1, 2)
    for path in (tmp_path / "checkpoints").iterdir():
        (path / "state.pt").write_bytes(b"garbage")
    for _ in range(2):  # the second time, too, instead of silently starting anew
        with pytest.raises(StateError, match=r"all 2 checkpoints in .* are damaged; remove .* and start"):
            checkpoint.latest(tmp_path, pytest.fail)


def test_files_of_an_earlier_version_are_not_taken_for_nothing(tmp_path):
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / "step-000000001.pt").write_bytes(b"x")
    with pytest.raises(StateError, match=r"checkpoints must be folders, but .* has files of an earlier version"):
        checkpoint.latest(tmp_path, pytest.fail)


def test_code_in_a_state_does_not_run(tmp_path):
    class Evil:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "evil"),)

    path = checkpoint.save(tmp_path, {"x": Evil()}, {"model/w": torch.ones(1)}, step=1)
    with pytest.raises(Exception, match=r"weights_only|Weights only"):
        checkpoint.load(path)
    assert not (tmp_path / "evil").exists()


def test_a_full_disk(tmp_path):
    """A small file system of its own, where that can be had."""
    disk = tmp_path / "disk"
    disk.mkdir()
    if os.geteuid() != 0 or os.system(f"mount -t tmpfs -o size=200k tmpfs {disk} 2>/dev/null") != 0:
        pytest.skip("needs the right to mount a tmpfs")
    try:
        fill(disk, 1)
        large = {"model/w": torch.zeros(100_000)}
        with pytest.raises(StateError, match=r"(No space left on device|the disk is full).*make room"):
            checkpoint.save(disk, {}, large, step=2)
        assert newest(disk) == 1
        shutil.rmtree(disk / "checkpoints" / "step-000000002.tmp", ignore_errors=True)
        fill(disk, 3)
        assert newest(disk) == 3
        assert "manifest.json" in json.dumps(sorted(os.listdir(disk / "checkpoints" / "step-000000003")))
    finally:
        os.system(f"umount {disk}")
