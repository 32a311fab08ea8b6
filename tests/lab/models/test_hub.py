"""Stand-ins for torchvision and timm: neither imports beside the CPU build that the tests run on."""

from __future__ import annotations

import sys
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lowland.core.errors import ArgumentError, UnknownNameError
from lowland.lab.models import build


class Net(nn.Module):
    def __init__(self, channels: int, classes: int, size: int | None) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, 4, 3)
        self.head = nn.Linear(4, classes)
        self.size = size

    def forward(self, x: Tensor) -> Tensor:
        if self.size is not None and x.shape[-1] != self.size:
            raise AssertionError(f"input size must be {self.size}")
        out: Tensor = self.head(self.conv(x).mean((2, 3)))
        return out


@pytest.fixture
def torchvision(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    def get_model(name: str, *, weights: None, num_classes: int, image_size: int | None = None) -> nn.Module:
        if name == "inception":
            return Net(3, num_classes, size=299)
        return Net(3, num_classes, image_size)

    models = ModuleType("torchvision.models")
    models.list_models = lambda: ["resnet18", "vit_b_16", "inception"]  # type: ignore[attr-defined]
    models.get_model = get_model  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "torchvision", ModuleType("torchvision"))
    monkeypatch.setitem(sys.modules, "torchvision.models", models)
    return models


@pytest.fixture
def timm(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    def create_model(name: str, *, pretrained: bool, num_classes: int, in_chans: int, **extra: Any) -> nn.Module:
        assert not pretrained
        if name == "resnet10t" and extra:
            raise TypeError("unexpected keyword argument 'img_size'")
        return Net(in_chans, num_classes, extra.get("img_size"))

    module = ModuleType("timm")
    module.list_models = lambda: ["resnet10t", "resnet18", "vit_tiny_patch16_224"]  # type: ignore[attr-defined]
    module.create_model = create_model  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "timm", module)
    return module


@pytest.fixture
def nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("torchvision", "torchvision.models", "timm"):
        monkeypatch.setitem(sys.modules, name, None)


@pytest.mark.parametrize("name", ["torchvision:resnet18", "resnet18", "vit_b_16"])
@pytest.mark.parametrize("shape", [(3, 32, 32), (1, 28, 28)], ids=str)
def test_torchvision(torchvision: ModuleType, name: str, shape: tuple[int, int, int]) -> None:
    model = build(name, shape=shape, classes=5, seed=0)
    assert model.training
    assert model(torch.randn(2, *shape)).shape == (2, 5)


@pytest.mark.parametrize("name", ["timm:resnet18", "resnet10t", "timm:vit_tiny_patch16_224"])
@pytest.mark.parametrize("shape", [(3, 32, 32), (1, 28, 28)], ids=str)
def test_timm(timm: ModuleType, nothing_else: None, name: str, shape: tuple[int, int, int]) -> None:
    model = build(name, shape=shape, classes=5, seed=0)
    assert model(torch.randn(2, *shape)).shape == (2, 5)


@pytest.fixture
def nothing_else(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torchvision.models", None)


def test_a_bare_name_prefers_torchvision(torchvision: ModuleType, timm: ModuleType) -> None:
    timm.create_model = None
    assert build("resnet18", shape=(3, 8, 8), classes=2, seed=0)


def test_weights_depend_on_the_seed_alone(torchvision: ModuleType) -> None:
    def weights() -> Tensor:
        model = build("torchvision:resnet18", shape=(3, 8, 8), classes=2, seed=4)
        return nn.utils.parameters_to_vector(model.parameters())

    first = weights()
    torch.manual_seed(77)
    assert torch.equal(weights(), first)


@pytest.mark.parametrize("package", ["torchvision", "timm"])
def test_not_installed(nothing: None, package: str) -> None:
    with pytest.raises(ArgumentError, match=f"need {package} to be installed.*pip install {package}"):
        build(f"{package}:resnet18", shape=(3, 32, 32), classes=10, seed=0)


def test_a_bare_name_without_packages_is_unknown(nothing: None) -> None:
    with pytest.raises(UnknownNameError, match="torchvision:NAME"):
        build("resnet18", shape=(3, 32, 32), classes=10, seed=0)


def test_a_torchvision_that_does_not_fit_this_torch(
    torchvision: ModuleType, timm: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its import raises a RuntimeError, as torchvision does beside another torch; timm still serves."""

    def fails(name: str) -> ModuleType:
        if name.startswith("torchvision"):
            raise RuntimeError("operator torchvision::nms does not exist")
        return sys.modules[name]

    monkeypatch.setattr("lowland.lab.models.hub.importlib.import_module", fails)
    assert build("resnet18", shape=(3, 32, 32), classes=10, seed=0)
    with pytest.raises(ArgumentError, match="nms does not exist; run: pip install torchvision"):
        build("torchvision:resnet18", shape=(3, 32, 32), classes=10, seed=0)


def test_unknown_name_in_a_package(torchvision: ModuleType) -> None:
    with pytest.raises(UnknownNameError, match="unknown torchvision model 'resnet81': did you mean 'resnet18'"):
        build("torchvision:resnet81", shape=(3, 32, 32), classes=10, seed=0)


def test_a_model_that_cannot_take_the_images(torchvision: ModuleType) -> None:
    with pytest.raises(ArgumentError, match="torchvision:inception cannot be used for images of shape"):
        build("torchvision:inception", shape=(3, 32, 32), classes=10, seed=0)


def test_a_model_that_does_not_return_logits(torchvision: ModuleType) -> None:
    torchvision.get_model = lambda *_, **__: nn.Flatten()
    with pytest.raises(ArgumentError, match=r"must be logits of shape \(2, 10\), but is \(2, 3072\)"):
        build("torchvision:resnet18", shape=(3, 32, 32), classes=10, seed=0)
