"""Changes of weights: deployed copies, noise of the right size, and restoration bit for bit."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations

from lowland.lab import models
from lowland.lab.quantize import quantize_model, quantized, targets
from lowland.lab.survival.weights import add_noise_, deployed, quantize_, restored
from lowland.lab.tasks.digits import Digits
from lowland.lab.training.evaluate import fingerprint


def convnet() -> nn.Module:
    return models.seeded(lambda: Digits().model("convnet"), 0).eval()


def test_only_matrices_and_kernels_change() -> None:
    model = convnet()
    before = copy.deepcopy(model.state_dict())
    quantize_(model, 4, "channel")
    changed = {name for name, tensor in model.state_dict().items() if not torch.equal(tensor, before[name])}
    assert changed == {target.name for target in targets(model)}
    assert all(torch.equal(target.tensor, quantized(before[target.name], 4)) for target in targets(model))


@pytest.mark.parametrize("fails", [False, True])
def test_everything_is_restored_bit_for_bit(fails: bool) -> None:
    model = convnet()
    with torch.no_grad():
        next(model.parameters()).view(-1)[:2] = torch.tensor([-0.0, float("nan")])
    before, addresses = fingerprint(model), [t.data_ptr() for t in model.state_dict().values()]
    try:
        with restored(model):
            add_noise_(model, 0.1, "tensor", 0, 0)
            model.train()(torch.randn(4, 1, 8, 8))  # running statistics
            assert fingerprint(model) != before
            if fails:
                raise KeyboardInterrupt
    except KeyboardInterrupt:
        assert fails
    assert fingerprint(model) == before
    assert [t.data_ptr() for t in model.state_dict().values()] == addresses


@pytest.mark.parametrize("norm", ["filter", "tensor"])
@pytest.mark.parametrize("level", [0.01, 0.5])
def test_the_noise_has_the_level(norm: str, level: float) -> None:
    layer = nn.Conv2d(64, 4, 5, bias=False)
    with torch.no_grad():
        layer.weight.mul_(torch.tensor([0.0, 0.1, 1.0, 10.0]).view(4, 1, 1, 1))
    before = layer.weight.detach().clone()
    add_noise_(layer, level, norm, 0, 0)  # type: ignore[arg-type]
    noise = (layer.weight.detach() - before).double().flatten(1).norm(dim=1)
    own = before.double().flatten(1).norm(dim=1)
    expected = level * (own if norm == "filter" else own.norm().expand(4) / 2)
    # 1600 normal numbers: the relative standard error of their norm is 1 / sqrt(3200) = 0.018
    torch.testing.assert_close(noise, expected, rtol=0.07, atol=1e-12)
    assert float(noise[0]) == 0 or norm == "tensor"


def test_draws_differ_and_levels_of_a_draw_have_the_same_direction() -> None:
    base = nn.Linear(30, 20)

    def noise(level: float, seed: int, draw: int) -> torch.Tensor:
        layer = copy.deepcopy(base)
        add_noise_(layer, level, "filter", seed, draw)
        return layer.weight.detach().double() - base.weight.detach().double()

    torch.testing.assert_close(10 * noise(0.01, 0, 0), noise(0.1, 0, 0), rtol=1e-2, atol=1e-5)  # float32
    assert not torch.allclose(noise(0.1, 0, 0), noise(0.1, 0, 1))
    assert not torch.allclose(noise(0.1, 0, 0), noise(0.1, 1, 0))
    assert torch.equal(noise(0.1, 1, 2), noise(0.1, 1, 2))


def test_shared_weights_change_once() -> None:
    model = nn.Sequential(nn.Linear(6, 6), nn.Linear(6, 6))
    model[1].weight = model[0].weight
    before = model[0].weight.detach().clone()
    add_noise_(model, 0.1, "tensor", 0, 0)
    alone = nn.Linear(6, 6)
    with torch.no_grad():
        alone.weight.copy_(before)
    add_noise_(alone, 0.1, "tensor", 0, 0)
    assert torch.equal(model[0].weight, alone.weight)


@pytest.mark.parametrize("kind", ["quantized", "weight norm", "plain"])
def test_a_deployed_copy_computes_the_same_and_leaves_the_model_alone(kind: str) -> None:
    model = convnet()
    if kind == "quantized":
        quantize_model(model, 4)
    elif kind == "weight norm":
        parametrizations.weight_norm(model[-1])
    inputs = torch.randn(3, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    before, outputs = fingerprint(model), model(inputs)
    twin = deployed(model)
    assert torch.equal(twin(inputs), outputs)
    assert not any("parametrizations" in name for name, _ in twin.named_parameters())
    quantize_(twin, 3, "tensor")
    assert not torch.equal(twin(inputs), outputs)
    assert torch.equal(model(inputs), outputs)  # the layers of the model still compute their weights
    assert torch.equal(deployed(model)(inputs), outputs)
    assert fingerprint(model) == before


def test_quantizing_a_model_trained_so_changes_nothing_but_rounding() -> None:
    twin = deployed(quantize_model(convnet(), 4))
    before = [target.tensor.detach().clone() for target in targets(twin)]
    quantize_(twin, 4, "channel")
    for target, weight in zip(targets(twin), before, strict=True):
        torch.testing.assert_close(target.tensor, weight, rtol=3e-7, atol=0)
