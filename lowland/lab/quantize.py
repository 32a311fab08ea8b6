"""Symmetric uniform quantization of the weights of linear and convolutional layers, after training or during it.

The weights of one output channel, or of one tensor, share a scale ``s = max|w| / n`` with ``n = 2^(bits - 1) - 1``.
A weight becomes ``s · clip(round(w / s), -n, n)``, where halves are rounded to the even integer. Activations, biases,
normalization layers and embeddings are not quantized.

References:
    Krishnamoorthi, "Quantizing Deep Convolutional Networks for Efficient Inference: A Whitepaper", arXiv:1806.08342,
    section 2, for symmetric quantizers with one scale per channel.
    Bengio, Léonard, Courville, "Estimating or Propagating Gradients Through Stochastic Neurons for Conditional
    Computation", arXiv:1308.3432, for the straight-through gradient.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd
from torch.nn.utils import parametrize

from lowland.core import checks
from lowland.core.errors import ArgumentError, UsageError
from lowland.executors.displacement import undisplaced

Granularity = Literal["channel", "tensor"]
Displace = Literal["latent", "quantized"]
GRANULARITIES: tuple[Granularity, ...] = ("channel", "tensor")
PROJECTIONS = ("in_proj_weight", "q_proj_weight", "k_proj_weight", "v_proj_weight")  # of nn.MultiheadAttention


def check_quantizer(bits: int, granularity: str) -> None:
    """Refuse bits outside 2 to 8, and an unknown granularity.

    Raises:
        ArgumentError: A value breaks its rule.
    """
    if isinstance(bits, bool) or not isinstance(bits, int) or not 2 <= bits <= 8:
        raise ArgumentError(f"bits must be an integer from 2 to 8, but is {bits!r}; take 8, 4 or 3")
    checks.one_of("granularity", granularity, GRANULARITIES)


def scales(weight: Tensor, bits: int, granularity: Granularity = "channel", axis: int = 0) -> Tensor:
    """The scales of a weight, shape ``(channels,)``, or ``(1,)`` for the whole tensor; no gradient flows through them.

    A channel of zeros has the smallest normal number as its scale, so that its weights stay zero.
    """
    sizes = weight.detach().abs()
    rows = sizes.movedim(axis, 0).flatten(1) if granularity == "channel" else sizes.reshape(1, -1)
    return (rows.amax(1) / _levels(bits)).clamp_min(torch.finfo(weight.dtype).tiny)


def fake_quantized(weight: Tensor, bits: int, granularity: Granularity = "channel", axis: int = 0) -> Tensor:
    """The quantized values of a weight, as float32, with the straight-through gradient.

    No weight is clipped, because the scale comes from the largest one, so the gradient is the identity. A channel with
    a weight that is not finite has no finite value, so a diverged training stays visible.

    Args:
        weight: The weight, float32.
        bits: The number of bits, from 2 to 8.
        granularity: One scale for each output channel, or one for the tensor.
        axis: The dimension of the output channels.

    Raises:
        ArgumentError: The weight is not float32.
    """
    if weight.dtype != torch.float32:
        raise ArgumentError(
            f"quantized weights must be float32, but are {weight.dtype}; convert the model first: model.float()"
        )
    scale, levels = scales(weight, bits, granularity, axis), _levels(bits)
    zero = torch.zeros_like(scale, dtype=torch.int32)
    if granularity == "channel":
        return torch.fake_quantize_per_channel_affine(weight, scale, zero, axis, -levels, levels)
    return torch.fake_quantize_per_tensor_affine(weight, scale, zero, -levels, levels)


def quantized(weight: Tensor, bits: int, granularity: Granularity = "channel", axis: int = 0) -> Tensor:
    """The quantized values of a trained weight; the arguments are those of :func:`fake_quantized`.

    Raises:
        ArgumentError: An argument breaks its rule, or a weight is not finite.
    """
    check_quantizer(bits, granularity)
    if not bool(weight.isfinite().all()):
        raise ArgumentError("quantized weights must be finite, but one is infinite or NaN; train the model again")
    return fake_quantized(weight.detach(), bits, granularity, axis)


def _levels(bits: int) -> int:
    """The largest integer code: the codes are ``-levels`` to ``levels``."""
    return int(2 ** (bits - 1)) - 1


class Target(NamedTuple):
    """A weight that is quantized: its layer, its attribute, the dimension of its output channels, and its name."""

    module: nn.Module
    attribute: str
    axis: int
    name: str

    @property
    def tensor(self) -> Tensor:
        """The weight, as forward uses it."""
        weight: Tensor = getattr(self.module, self.attribute)
        return weight


def targets(model: nn.Module) -> list[Target]:
    """The weights of linear and convolutional layers and of ``nn.MultiheadAttention``, each tensor once.

    A weight that an embedding shares with a linear layer is one of them; other embeddings are not.

    Raises:
        ArgumentError: The model has no such layer, the weight of one is computed by a hook, or one is a transposed
            convolution with groups.
    """
    found: dict[int, Target] = {}
    for path, module in model.named_modules():
        for attribute, axis in _attributes(module):
            name = ".".join(filter(None, (path, attribute)))
            derived = parametrize.is_parametrized(module, attribute)
            if not derived and module._parameters.get(attribute) is None:
                raise ArgumentError(
                    f"{name} must be a parameter, but is not, as under torch.nn.utils.weight_norm; use "
                    "torch.nn.utils.parametrizations"
                )
            if axis and module.groups != 1:  # an index of this dimension is an output channel of every group
                raise ArgumentError(
                    f"{name} must be that of a transposed convolution without groups, so that each output channel has "
                    f"its own scale, but groups is {module.groups}; take groups=1"
                )
            found.setdefault(id(_leaf(module, attribute)), Target(module, attribute, axis, name))
    if not found:
        raise ArgumentError(
            "model must have a linear or convolutional layer, whose weights are quantized, but has none; take a model "
            "with torch.nn.Linear or torch.nn.Conv2d"
        )
    return list(found.values())


def _attributes(module: nn.Module) -> Iterator[tuple[str, int]]:
    """The quantized attributes of a layer, each with the dimension of the output channels."""
    if isinstance(module, nn.Linear | _ConvNd):
        yield "weight", 1 if isinstance(module, _ConvTransposeNd) else 0
    elif isinstance(module, nn.MultiheadAttention):
        yield from ((name, 0) for name in PROJECTIONS if getattr(module, name) is not None)


def _leaf(module: nn.Module, attribute: str) -> object:
    """The parameter that a weight is, or from which its parametrization computes it."""
    if not parametrize.is_parametrized(module, attribute):
        return getattr(module, attribute)
    chain: Any = module.parametrizations[attribute]  # type: ignore[index]
    return next(iter(chain.parameters()), chain)


class FakeQuantize(nn.Module):
    """A parametrization that quantizes a weight in forward; its parameter is the latent weight, which is trained.

    Args:
        bits: The number of bits, from 2 to 8.
        granularity: One scale for each output channel, or one for the tensor.
        displace: What a displacement ``e`` of the latent weight ``w`` changes: ``latent`` computes ``Q(w + e)``,
            ``quantized`` computes ``Q(w) + e``. The gradient with respect to ``w`` is straight-through in both.
        axis: The dimension of the output channels.
    """

    def __init__(
        self, bits: int, granularity: Granularity = "channel", displace: Displace = "latent", axis: int = 0
    ) -> None:
        super().__init__()
        check_quantizer(bits, granularity)
        checks.one_of("displace", displace, ("latent", "quantized"))
        self.bits, self.granularity, self.displace, self.axis = bits, granularity, displace, axis

    def forward(self, latent: Tensor) -> Tensor:
        """The quantized weight, with the displacement of the running pass before or after the quantization.

        Raises:
            UsageError: ``displace`` is quantized, and the latent weight is not the parameter itself, so that its
                displacement is unknown.
        """
        if self.displace == "latent":
            return fake_quantized(latent, self.bits, self.granularity, self.axis)
        if not isinstance(latent, nn.Parameter):
            raise UsageError(
                "displace='quantized' needs the parameter itself, but forward got another tensor, as from "
                "torch.func.functional_call or the executor Batched; use the executor Local, or displace='latent'"
            )
        at = undisplaced(latent)
        if at is latent:
            return fake_quantized(latent, self.bits, self.granularity, self.axis)
        # The gradient with respect to the displaced latent weight is that of the weight that forward uses.
        return fake_quantized(at, self.bits, self.granularity, self.axis) + (latent - at)

    def extra_repr(self) -> str:
        """The settings, for ``print(model)``."""
        return f"bits={self.bits}, granularity={self.granularity}, displace={self.displace}"


def quantize_model(
    model: nn.Module, bits: int, granularity: Granularity = "channel", displace: Displace = "latent"
) -> nn.Module:
    """Quantize the weights of :func:`targets` in every forward pass of a model; the trained parameters are latent.

    Args:
        model: The model, changed in place.
        bits: The number of bits, from 2 to 8.
        granularity: One scale for each output channel, or one for the tensor.
        displace: See :class:`FakeQuantize`.

    Returns:
        The model.

    Raises:
        ArgumentError: An argument breaks its rule, a weight is not float32, is parametrized already, or belongs to
            several modules.
    """
    uses: dict[int, list[str]] = {}
    for name, p in model.named_parameters(remove_duplicate=False):
        uses.setdefault(id(p), []).append(name)
    for target in targets(model):
        names = uses.get(id(target.tensor), [])
        if len(names) > 1 or parametrize.is_parametrized(target.module, target.attribute):
            problem = f"belongs to {' and '.join(names)}" if len(names) > 1 else "is parametrized already"
            raise ArgumentError(
                f"a weight that is quantized in training must be a parameter of one module, but {target.name} "
                f"{problem}; take a model without shared and parametrized weights"
            )
        quantizer = FakeQuantize(bits, granularity, displace, target.axis)
        parametrize.register_parametrization(target.module, target.attribute, quantizer)
    return model
