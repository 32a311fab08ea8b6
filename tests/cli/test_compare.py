from __future__ import annotations

import json

import pytest

from lowland.cli.main import main
from lowland.methods import METHODS

TINY = ["--task", "digits", "--epochs", "1", "--limit", "4", "--threads", "1"]


@pytest.mark.slow
def test_all_methods_but_what_cannot_work(tmp_path, capsys):
    arguments = ["compare", *TINY, "--methods", "all", "sam:rho=0.1", "--seeds", "1", "--out", str(tmp_path)]
    assert main(arguments) == 0
    shown = " ".join(capsys.readouterr().out.split())
    count = len(METHODS)  # without sam-on, and with sam at another radius
    assert f"[{count}/{count}] digits-mlp-sam_rho=0.1-seed0" in shown
    assert shown.count("all is without sam-on: the model must have a normalization layer") == 2  # before and after
    assert {json.loads(p.read_text().splitlines()[0])["method"]["text"] for p in tmp_path.glob("*/run.jsonl")} == (
        METHODS.keys() - {"sam-on"} | {"sam:rho=0.1"}
    )
    (page,) = (path.read_text() for path in tmp_path.glob("digits-mlp-*.html"))
    assert "optimizer=amsgrad, lr=0.005, weight_decay=5e-05" in page.replace("<wbr>", "")  # in its row
    line = json.loads(next(tmp_path.glob("digits-mlp-adasam-seed0-*/run.jsonl")).read_text().splitlines()[0])
    assert (line["recipe"]["optimizer"], line["recipe"]["lr"]) == ("amsgrad", 0.1 / 20)


def test_a_single_run_of_adasam_has_its_recipe_too(tmp_path):
    assert main(["train", *TINY, "--method", "late:start=2,inner=adasam", "--name", "x", "--out", str(tmp_path)]) == 0
    line = json.loads((tmp_path / "x" / "run.jsonl").read_text().splitlines()[0])
    assert (line["recipe"]["optimizer"], line["recipe"]["lr"]) == ("amsgrad", 0.1 / 20)
    assert line["method"]["fields"] == {
        "inner": "adasam(rho=0.05, geometry=l2, ascent_gradient=mean)",
        "start": 2,
        "total": None,
    }
