"""Weights from which a training starts: what is loaded, which layer is the head, and which files are refused."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save, save_file
from torch import nn

from lowland.core.errors import ArgumentError, DataError
from lowland.lab.models import MODELS, build
from lowland.lab.models.start import head_of, start_from, weights_file

PLACE = Path("some.safetensors")


@pytest.mark.parametrize("name", [n for n in MODELS if not n.startswith("resnet20-w")])
def test_the_head_is_the_last_linear_layer(name: str) -> None:
    """It is the layer whose shape depends on the number of classes."""
    one, other = (build(name, shape=(3, 32, 32), classes=n, seed=0).state_dict() for n in (3, 4))
    head = head_of(build(name, shape=(3, 32, 32), classes=3, seed=0), 3)
    assert {n for n in one if one[n].shape != other[n].shape} == {f"{head}.weight", f"{head}.bias"}


def test_all_but_the_head_is_loaded_with_buffers() -> None:
    old, new = (build("convnet", shape=(1, 8, 8), classes=3, seed=seed) for seed in (0, 1))
    old.train()(torch.rand(4, 1, 8, 8))  # changes the running statistics
    fresh = {name: t.clone() for name, t in new.state_dict().items()}
    start_from(new, save(old.state_dict()), 3, PLACE)
    for name, value in new.state_dict().items():
        assert torch.equal(value, fresh[name] if name.startswith("14.") else old.state_dict()[name]), name
    assert not torch.equal(old.state_dict()["14.weight"], fresh["14.weight"])  # the heads have equal shapes


def test_a_file_without_head_or_with_another_head_will_do() -> None:
    old = build("mlp", shape=(1, 8, 8), classes=7, seed=0).state_dict()
    new = build("mlp", shape=(1, 8, 8), classes=3, seed=1)
    start_from(new, save(old), 3, PLACE)
    assert torch.equal(new.state_dict()["1.weight"], old["1.weight"])
    again = build("mlp", shape=(1, 8, 8), classes=3, seed=1)
    start_from(again, save({name: t for name, t in old.items() if not name.startswith("5.")}), 3, PLACE)
    assert all(torch.equal(a, b) for a, b in zip(new.parameters(), again.parameters(), strict=True))


@pytest.mark.parametrize("fault", ["missing", "added", "shape"])
def test_weights_of_another_model(fault: str) -> None:
    model = build("mlp", shape=(1, 8, 8), classes=3, seed=0)
    saved = dict(model.state_dict())
    before = {name: t.clone() for name, t in saved.items()}
    if fault == "missing":
        del saved["3.bias"]
    elif fault == "added":
        saved["3.extra"] = torch.zeros(1)
    else:
        saved["3.bias"] = torch.zeros(2)
    with pytest.raises(ArgumentError, match=r"model must be the one whose weights are in some.safetensors.* but 3\."):
        start_from(model, save(saved), 3, PLACE)
    assert all(torch.equal(t, before[name]) for name, t in model.state_dict().items()), "nothing is half loaded"


def test_no_head() -> None:
    with pytest.raises(ArgumentError, match="last linear layer of the model must have 3 outputs"):
        head_of(nn.Sequential(nn.Linear(4, 3), nn.Linear(3, 2)), 3)
    with pytest.raises(ArgumentError, match="but Conv2d has no such layer"):
        head_of(nn.Conv2d(1, 3, 1), 3)


def test_a_file_that_is_none() -> None:
    with pytest.raises(DataError, match=r"some.safetensors must be a safetensors file"):
        start_from(build("mlp", shape=(1, 8, 8), classes=3, seed=0), b"nothing", 3, PLACE)


def test_the_file_of_weights(tmp_path: Path) -> None:
    save_file({"a": torch.zeros(1)}, tmp_path / "a.safetensors")
    assert weights_file(str(tmp_path / "a.safetensors"), "COMMAND") == tmp_path / "a.safetensors"
    with pytest.raises(ArgumentError, match="is not there; make a run with: COMMAND"):
        weights_file(str(tmp_path), "COMMAND")
