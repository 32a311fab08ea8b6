from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch

from lowland.lab.identity import _tf32, config_line, differences
from lowland.lab.training.prepare import complete, line_of, loader_of
from lowland.methods import make


def fields(config, method):
    made = make(method)
    return config_line(replace(config, method=method), made, "", steps_per_epoch=6, command=())["method"]["fields"]


def test_a_method_inside_another_is_recorded_with_all_its_fields(config):
    assert fields(config, "late:start=0.5,total=100,inner=looksam:k=3") == {
        "inner": "looksam(rho=0.05, geometry=l2, k=3, alpha=0.7, decomposition=global)", "start": 0.5, "total": 100
    }  # fmt: skip
    twice = fields(config, "late:start=1,inner=stable-sam:inner=asam")["inner"]
    assert twice == "stable-sam(inner=asam(rho=0.5, geometry=adaptive, ascent_gradient=mean))"


def test_spelled_in_another_way_it_is_the_same_run(config):
    lines = [
        config_line(replace(config, method=text), make(text), "", steps_per_epoch=6, command=())
        for text in ("late:start=1", "late:inner=sam:rho=0.05", "late:start=1,inner=sam:rho=0.1")
    ]
    lines[1]["method"]["fields"]["start"] = 1
    assert differences(lines[0], lines[1]) == []
    assert [name for name, _, _ in differences(lines[0], lines[2])] == ["method.inner"]


@pytest.mark.parametrize("text", ["ae-sam:l1=-inf,l2=-inf,total=10", "ae-sam:l1=inf,l2=inf,total=10"])
def test_infinite_thresholds_survive_a_run_file(config, text):
    found = fields(config, text)
    assert found["l1"] in ("-inf", "inf")
    assert json.loads(json.dumps(found, allow_nan=False)) == found


def test_schedules_are_told(config):
    gsam = replace(config, method="gsam")
    line = line_of(gsam, loader_of(gsam), complete(gsam, loader_of(gsam)))
    assert line["method"]["fields"]["rho"] == "FollowLR(high=0.05, low=0.0, lr_high=0.05, lr_low=0.0)"


def test_tf32_is_recorded_on_a_gpu_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", True)
    assert _tf32(torch.device("cpu")) == {}
    assert _tf32(torch.device("cuda")) == {"tf32_matmul": False, "tf32_convolutions": True}
