from __future__ import annotations

import pytest
import torch
from torch import nn

from lowland.core.errors import ArgumentError, UnknownNameError
from lowland.lab.models import MODELS, build

SHAPES = [(1, 8, 8), (1, 28, 28), (3, 32, 32)]


def parameters(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


def test_names() -> None:
    widths = [f"resnet20-w{width}" for width in (4, 8, 32, 64)]
    assert list(MODELS) == ["mlp", "convnet", "resnet20", "resnet56", "wrn-16-4", "vit-tiny", *widths]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("name", list(MODELS))
def test_every_model_takes_every_shape(name: str, shape: tuple[int, int, int]) -> None:
    model = build(name, shape=shape, classes=7, seed=0)
    inputs = torch.randn(2, *shape)
    logits = model(inputs)
    assert logits.shape == (2, 7)
    logits.sum().backward()
    assert all(p.grad is not None for p in model.parameters())
    model.eval().to(memory_format=torch.channels_last)
    plain, last = model(inputs), model(inputs.contiguous(memory_format=torch.channels_last))
    assert torch.allclose(plain, last, atol=1e-4)


@pytest.mark.parametrize(
    ("name", "count"),
    [
        ("mlp", 3072 * 256 + 256 + 256 * 256 + 256 + 2570),
        ("convnet", 94_762),
        ("resnet20", 269_722),  # the paper's 0.27 million
        ("resnet56", 853_018),  # 0.85 million
        ("wrn-16-4", 2_748_890),  # 2.7 million
        ("resnet20-w4", 17_326),  # a fifteenth of the paper's, because it grows with the square of the width
        ("resnet20-w64", 4_286_026),
        ("vit-tiny", 157962),
    ],
)
def test_sizes_on_cifar10(name: str, count: int) -> None:
    assert parameters(build(name, shape=(3, 32, 32), classes=10, seed=0)) == count


@pytest.mark.parametrize("name", list(MODELS))
def test_weights_depend_on_the_seed_alone(name: str) -> None:
    def weights(seed: int) -> torch.Tensor:
        return nn.utils.parameters_to_vector(build(name, shape=(1, 8, 8), classes=3, seed=seed).parameters())

    first = weights(1)
    torch.manual_seed(99)
    state = torch.get_rng_state()
    assert torch.equal(weights(1), first)
    assert torch.equal(torch.get_rng_state(), state)
    assert not torch.equal(weights(2), first)


@pytest.mark.parametrize("name", ["resnet20", "wrn-16-4"])
def test_stages_halve_the_image(name: str) -> None:
    model = build(name, shape=(3, 32, 32), classes=10, seed=0)
    sizes: list[tuple[int, ...]] = []
    for module in model.modules():
        if type(module).__name__ == "Block":
            module.register_forward_hook(lambda _m, _i, out: sizes.append(tuple(out.shape[1:])))
    model(torch.randn(2, 3, 32, 32))
    factor = 4 if name == "wrn-16-4" else 1
    widths = [(16 * factor, 32, 32), (32 * factor, 16, 16), (64 * factor, 8, 8)]
    assert list(dict.fromkeys(sizes)) == widths
    assert len(sizes) == (6 if name == "wrn-16-4" else 9)


def test_option_a_shortcut_subsamples_and_adds_zeros() -> None:
    from lowland.lab.models.resnet import Block

    block = Block(4, 6, stride=2).eval()
    nn.init.zeros_(block.conv2.weight)  # leaves the shortcut alone
    x = torch.rand(1, 4, 8, 8)
    out = block(x)
    assert torch.equal(out[:, :4], x[:, :, ::2, ::2])
    assert not out[:, 4:].any()


@pytest.mark.parametrize("name", ["resnet21", "nothing-like-it", "other:resnet18", ":", ""])
def test_unknown_name(name: str) -> None:
    with pytest.raises(UnknownNameError, match=r"unknown model .*known are convnet, mlp, resnet20"):
        build(name, shape=(3, 32, 32), classes=10, seed=0)


def test_unknown_name_suggests_the_nearest() -> None:
    with pytest.raises(UnknownNameError, match="did you mean 'wrn-16-4'"):
        build("wrn16-4", shape=(3, 32, 32), classes=10, seed=0)


def test_too_small_images() -> None:
    with pytest.raises(ArgumentError, match="shape must be at least 8 × 8"):
        build("convnet", shape=(3, 4, 8), classes=10, seed=0)


def test_one_class_is_none() -> None:
    with pytest.raises(ArgumentError, match="classes must be an integer >= 2"):
        build("mlp", shape=(1, 8, 8), classes=1, seed=0)
