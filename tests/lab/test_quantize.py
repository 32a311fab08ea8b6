"""The quantizer against one written by hand in NumPy, its edges, and its gradient."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations

from lowland import SAM, Engine
from lowland.core.errors import ArgumentError, UsageError
from lowland.executors.displacement import displaced
from lowland.lab.quantize import FakeQuantize, Granularity, fake_quantized, quantize_model, quantized, scales, targets


def by_hand(weight: Tensor, bits: int, granularity: str, axis: int) -> Tensor:
    """Each channel in turn: divide by the scale (in float32: times its inverse), round half to even, multiply."""
    array = np.moveaxis(weight.detach().numpy(), axis, 0).copy()
    channels = [array[c : c + 1] for c in range(len(array))] if granularity == "channel" else [array]
    for channel in channels:
        n = np.float32(2 ** (bits - 1) - 1)
        scale = np.maximum(np.abs(channel).max() / n, np.finfo(np.float32).tiny, dtype=np.float32)
        codes = np.clip(np.rint(channel * (np.float32(1) / scale)), -n, n)
        channel[...] = codes * scale
    return torch.from_numpy(np.ascontiguousarray(np.moveaxis(array, 0, axis)))


@pytest.mark.parametrize("bits", [2, 3, 4, 5, 6, 7, 8])
@pytest.mark.parametrize("granularity", ["channel", "tensor"])
@pytest.mark.parametrize(("shape", "axis"), [((5, 7), 0), ((4, 3, 3, 2), 0), ((3, 6, 2, 2), 1), ((1, 1), 0)])
def test_the_values_are_those_of_numpy(bits: int, granularity: Granularity, shape: tuple[int, ...], axis: int) -> None:
    for seed in range(5):
        weight = torch.randn(shape, generator=torch.Generator().manual_seed(seed)) * 10.0 ** (seed - 2)
        assert torch.equal(quantized(weight, bits, granularity, axis), by_hand(weight, bits, granularity, axis))


def test_the_error_is_at_most_half_a_step_and_the_largest_weight_stays() -> None:
    weight = torch.randn(8, 100, generator=torch.Generator().manual_seed(0))
    for bits in (2, 3, 4, 8):
        step = weight.abs().amax(1, keepdim=True).double() / (2 ** (bits - 1) - 1)
        found = quantized(weight, bits).double()
        assert bool(((found - weight.double()).abs() <= step / 2 * (1 + 1e-6)).all())  # 1e-6: float32
        largest = weight.abs().argmax(1, keepdim=True)
        torch.testing.assert_close(found.gather(1, largest), weight.double().gather(1, largest), rtol=3e-7, atol=0)
        assert len(found[0].unique()) <= 2**bits - 1


def test_halves_are_rounded_to_the_even_code() -> None:
    step = 0.125
    weight = step * torch.tensor([[7.0, 0.5, 1.5, 2.5, -0.5, -1.5, -2.5, 3.5]])
    assert quantized(weight, 4).tolist() == [[step * code for code in (7, 0, 2, 2, 0, -2, -2, 4)]]


def test_edges() -> None:
    zeros = torch.tensor([[0.0, 0.0], [1.0, -2.0]])
    assert torch.equal(quantized(zeros, 4)[0], torch.zeros(2))
    assert float(quantized(torch.tensor([[-0.3]]), 8)) == pytest.approx(-0.3, rel=3e-7)
    tiny = torch.tensor([[1e-45, 0.0]])  # below the smallest normal number
    assert torch.equal(quantized(tiny, 4), torch.zeros(1, 2))
    grid = 0.25 * torch.randint(-7, 8, (6, 9), generator=torch.Generator().manual_seed(1))
    grid[:, 0] = 1.75  # so that the scale of every channel is 0.25
    assert torch.equal(quantized(grid, 4), grid)
    assert torch.equal(quantized(grid, 4, "tensor"), grid)


@pytest.mark.parametrize("granularity", ["channel", "tensor"])
def test_a_second_quantization_changes_at_most_the_last_bit(granularity: Granularity) -> None:
    once = quantized(torch.randn(50, 50, generator=torch.Generator().manual_seed(3)), 4, granularity)
    torch.testing.assert_close(quantized(once, 4, granularity), once, rtol=3e-7, atol=0)


def test_refusals() -> None:
    weight = torch.ones(2, 2)
    for bad in (float("nan"), float("inf")):
        with pytest.raises(ArgumentError, match="quantized weights must be finite"):
            quantized(torch.tensor([[1.0, bad]]), 4)
    for bits in (1, 9, 4.0, True):
        with pytest.raises(ArgumentError, match="bits must be an integer from 2 to 8"):
            quantized(weight, bits)  # type: ignore[arg-type]
    with pytest.raises(ArgumentError, match="granularity must be one of"):
        quantized(weight, 4, "row")  # type: ignore[arg-type]
    with pytest.raises(ArgumentError, match=r"must be float32, but are torch\.float64"):
        quantized(weight.double(), 4)
    with pytest.raises(ArgumentError, match="must have a linear or convolutional layer"):
        targets(nn.Sequential(nn.ReLU(), nn.BatchNorm2d(3)))


@pytest.mark.parametrize("granularity", ["channel", "tensor"])
def test_the_gradient_is_straight_through(granularity: Granularity) -> None:
    weight = torch.randn(4, 6, generator=torch.Generator().manual_seed(0)).requires_grad_()
    upstream = torch.randn(4, 6, generator=torch.Generator().manual_seed(1))
    found = fake_quantized(weight, 4, granularity)
    assert torch.equal(found.detach(), quantized(weight, 4, granularity))
    (found * upstream).sum().backward()
    assert weight.grad is not None
    assert torch.equal(weight.grad, upstream)  # also at the largest weights: the scale counts as a constant


def test_a_weight_that_is_not_finite_stays_visible() -> None:
    for bad in (float("nan"), float("inf")):
        found = fake_quantized(torch.tensor([[1.0, bad], [1.0, 0.5]]), 4)
        assert not bool(found[0].isfinite().any())
        assert bool(found[1].isfinite().all())


def test_the_targets_are_matrices_and_kernels() -> None:
    shared = nn.Embedding(4, 3)
    head = nn.Linear(3, 4)
    head.weight = shared.weight  # the linear layer makes it a target
    model = nn.ModuleDict({
        "tokens": shared, "head": head, "other": nn.Embedding(4, 3), "conv": nn.Conv2d(3, 6, 3, groups=3),
        "up": nn.ConvTranspose2d(3, 5, 2), "attention": nn.MultiheadAttention(4, 2), "norm": nn.LayerNorm(3),
    })  # fmt: skip
    names = ["head.weight", "conv.weight", "up.weight", "attention.in_proj_weight", "attention.out_proj.weight"]
    found = targets(model)
    assert [target.name for target in found] == names
    assert [target.axis for target in found] == [0, 0, 1, 0, 0]
    assert scales(found[2].tensor, 4, axis=1).shape == (5,)
    with pytest.warns(FutureWarning):
        hooked = nn.utils.weight_norm(nn.Linear(2, 2))
    with pytest.raises(ArgumentError, match=r"weight must be a parameter, but is not"):
        targets(hooked)
    assert [t.name for t in targets(parametrizations.weight_norm(nn.Linear(2, 2)))] == ["weight"]


def test_output_channels_that_would_share_a_scale_are_refused() -> None:
    """With two groups, the output channels of weights 100 and 0.3 had one scale, so 0.3 became 0."""
    assert targets(nn.Conv2d(2, 2, 1, groups=2))
    assert targets(nn.ConvTranspose2d(2, 2, 1))
    with pytest.raises(ArgumentError, match="weight must be that of a transposed convolution without groups"):
        targets(nn.ConvTranspose2d(2, 2, 1, groups=2))


def test_a_model_that_cannot_be_quantized_in_training() -> None:
    tied = nn.Sequential(nn.Embedding(4, 3), nn.Linear(3, 4))
    tied[1].weight = tied[0].weight
    with pytest.raises(ArgumentError, match=r"1\.weight belongs to 0\.weight and 1\.weight"):
        quantize_model(tied, 4)
    with pytest.raises(ArgumentError, match=r"weight is parametrized already"):
        quantize_model(parametrizations.weight_norm(nn.Linear(2, 2)), 4)
    with pytest.raises(ArgumentError, match="displace must be one of"):
        quantize_model(nn.Linear(2, 2), 4, displace="both")  # type: ignore[arg-type]


@pytest.mark.parametrize("displace", ["latent", "quantized"])
def test_a_displacement_comes_before_or_after_the_quantization(displace: str) -> None:
    layer = quantize_model(nn.Linear(5, 3), 4, displace=displace)  # type: ignore[arg-type]
    params = list(layer.parameters())
    latent = next(p for name, p in layer.named_parameters() if "original" in name)
    before = latent.detach().clone()
    at = [0.03 * torch.randn(p.shape, generator=torch.Generator().manual_seed(i)) for i, p in enumerate(params)]
    own = next(e for p, e in zip(params, at, strict=True) if p is latent)
    with displaced(params, list(at)):
        found = layer.weight
        found.sum().backward()
    expected = quantized(before + own, 4) if displace == "latent" else quantized(before, 4) + own
    torch.testing.assert_close(found.detach(), expected, rtol=0, atol=1e-7)  # w + e is rounded once
    assert latent.grad is not None
    assert torch.equal(latent.grad, torch.ones(3, 5))
    assert torch.equal(latent, before)
    assert torch.equal(layer.weight, quantized(before, 4))


def test_a_quantized_displacement_needs_the_parameter_itself() -> None:
    layer = quantize_model(nn.Linear(2, 2), 4, displace="quantized")
    copies = {name: p.detach().clone() for name, p in layer.named_parameters()}
    with pytest.raises(UsageError, match="needs the parameter itself"):
        torch.func.functional_call(layer, copies, (torch.ones(1, 2),))
    other = nn.Linear(2, 2)
    with (
        displaced(list(other.parameters()), [torch.zeros(2, 2), torch.zeros(2)]),
        pytest.raises(UsageError, match="must see the parameters that a pass displaces"),
    ):
        layer(torch.ones(1, 2))
    layer.requires_grad_(False)  # nothing displaces a frozen layer
    with displaced(list(other.parameters()), [torch.zeros(2, 2), torch.zeros(2)]):
        layer(torch.ones(1, 2))


def on_the_grid() -> nn.Sequential:
    """A network whose latent weights are in the middle of their intervals, step 0.25, each channel with its maximum."""
    draw = torch.Generator().manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3))
    with torch.no_grad():
        for layer in (model[0], model[2]):
            layer.weight.copy_(0.25 * torch.randint(-6, 7, layer.weight.shape, generator=draw))
            layer.weight[:, 0] = 1.75
    return model


class Frozen(torch.autograd.Function):
    """A weight whose column 0, the maximum of each channel, has no gradient."""

    @staticmethod
    def forward(ctx: object, weight: Tensor) -> Tensor:
        return weight.clone()

    @staticmethod
    def backward(ctx: object, grad: Tensor) -> Tensor:  # type: ignore[override]
        return torch.cat([torch.zeros_like(grad[:, :1]), grad[:, 1:]], 1)


class Held(nn.Module):
    """A parametrization that keeps the gradient away from the maxima, so that a step leaves the scales alone."""

    def forward(self, weight: Tensor) -> Tensor:
        held: Tensor = Frozen.apply(weight)
        return held


@pytest.mark.parametrize("displace", ["latent", "quantized"])
def test_rounding_undoes_a_latent_perturbation_below_half_a_step(displace: str) -> None:
    model = quantize_model(on_the_grid(), 4, displace=displace)  # type: ignore[arg-type]
    for layer in (model[0], model[2]):
        nn.utils.parametrize.register_parametrization(layer, "weight", Held())
        layer.bias.requires_grad_(False)
    trained = [p for p in model.parameters() if p.requires_grad]
    inputs = torch.randn(20, 6, generator=torch.Generator().manual_seed(1))
    targets = torch.randint(3, (20,), generator=torch.Generator().manual_seed(2))
    seen: list[tuple[float, list[Tensor]]] = []
    engine = Engine(SAM(rho=0.1), model, torch.optim.SGD(trained, lr=0.1))
    for p in engine.passes((inputs, targets)):
        with p:
            loss = nn.functional.cross_entropy(model(inputs), targets)
            seen.append((float(loss.detach()), list(torch.autograd.grad(loss, trained, retain_graph=True))))
            p.backward(loss)
    (plain, first), (risen, second) = seen
    same = all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    if displace == "latent":  # a perturbation of length 0.1 is below half a step, 0.125, in every weight
        assert same
        assert plain == risen
    else:
        assert not same
        assert risen > plain


def test_a_copy_of_a_quantized_model_displaces_its_own_weights() -> None:
    layer = quantize_model(nn.Linear(4, 2), 4, displace="quantized")
    twin = copy.deepcopy(layer)
    at = [torch.full_like(p, 0.5) for p in twin.parameters()]
    unmoved = layer.weight.detach().clone()
    with displaced(list(twin.parameters()), at), torch.no_grad():
        torch.testing.assert_close(twin.weight, unmoved + 0.5, rtol=0, atol=1e-6)


def test_the_parametrization_shows_its_settings() -> None:
    assert "bits=4, granularity=tensor, displace=latent" in repr(FakeQuantize(4, "tensor"))
