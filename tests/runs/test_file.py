from __future__ import annotations

import json

import pytest

from lowland.core.errors import ArgumentError
from lowland.runs.file import History, RunFile, history


def write(folder, *kinds, fresh=True):
    file = RunFile(folder, fresh=fresh)
    for kind in kinds:
        file.write(kind, number=1)
    file.close()


def test_numbers_that_json_does_not_know_become_null(tmp_path):
    file = RunFile(tmp_path, fresh=True)
    line = file.write("epoch", loss=float("nan"), nested={"x": [float("inf"), 1.5]})
    file.close()
    assert line == {"kind": "epoch", "loss": None, "nested": {"x": [None, 1.5]}}
    assert json.loads((tmp_path / "run.jsonl").read_text()) == line


def test_lines_are_there_without_closing(tmp_path):
    file = RunFile(tmp_path, fresh=True)
    file.write("config")
    assert history(tmp_path).config == {"kind": "config"}
    file.close()


def test_history(tmp_path):
    assert history(tmp_path) == History(None, None)
    write(tmp_path, "config", "epoch")
    assert history(tmp_path).end is None
    write(tmp_path, "end", fresh=False)
    assert history(tmp_path).end["kind"] == "end"
    write(tmp_path, "resumed", fresh=False)
    assert history(tmp_path).end is None
    write(tmp_path, "config", fresh=True)
    assert history(tmp_path).config["kind"] == "config"


def test_a_torn_last_line_is_cut(tmp_path):
    write(tmp_path, "config")
    path = tmp_path / "run.jsonl"
    path.write_bytes(path.read_bytes() + b'{"kind":"ep')
    assert history(tmp_path).config["kind"] == "config"
    write(tmp_path, "epoch", fresh=False)
    assert [json.loads(line)["kind"] for line in path.read_text().splitlines()] == ["config", "epoch"]


def test_a_folder_below_a_file(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ArgumentError, match=r"file/run cannot be \(Not a directory\); choose another --out"):
        RunFile(tmp_path / "file" / "run", fresh=True)
