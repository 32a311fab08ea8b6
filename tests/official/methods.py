"""From the description in a file to lowland's method, which is made to choose what the release chose by chance."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any

import torch

from lowland import Engine, Geometry, Method, Switch, vec
from lowland.core import schedule
from lowland.core.geometry import Adaptive, Radii
from lowland.core.vec import Vec
from lowland.methods import METHODS
from official.files import Recorded


@dataclass(frozen=True, kw_only=True)
class Added(Geometry):
    """``rho * g / (||g|| + eps)``, where a release adds more to the norm than lowland."""

    eps: float

    def ascent(self, params: Vec, grad: Vec, radii: Radii) -> Vec:
        return vec.scale(grad, radii / (vec.norm(grad) + self.eps))


@dataclass(frozen=True, kw_only=True)
class OneFactor(Geometry):
    """``rho * T g / ||T g||`` with ``T = |w|``, where ``Adaptive`` has ``T^2`` above the norm; on one tensor."""

    def ascent(self, params: Vec, grad: Vec, radii: Radii) -> Vec:
        assert isinstance(radii, list)
        scaled = [g * p.detach().abs() if r > 0 else g for g, p, r in zip(grad, params, radii, strict=True)]
        (size,) = [vec.norm([s]) for s, r in zip(scaled, radii, strict=True) if r > 0]
        return [r * s / (size + 1e-12) for s, r in zip(scaled, radii, strict=True)]


GEOMETRIES = {"Adaptive(eta=0)": Adaptive(eta=0), "Adaptive(eta=0.01)": Adaptive(eta=0.01)}
NO_FIELDS = ("key", "every", "offset", "group_rho", "warmup_epochs", "ramp_epochs", "steps_per_epoch")
NO_FIELDS += ("eps", "adaptive", "dynamic")  # of the second set


def method_of(run: Recorded) -> Method:
    """The method of a run; what it draws is what the release drew."""
    method, arrays = described(run.meta["method"]), run.arrays
    if run.key == "ausam":
        return altered(method, _draw=lambda self, engine, index, count, t: torch.from_numpy(arrays["drawn"][t, :count]))
    if run.key == "sl-sam":
        return altered(method, _draw=lambda self, engine, p: arrays["active"][engine.step].tolist())
    if run.key == "vsam":
        return altered(method, _due=lambda self, engine: bool(arrays["refresh"][engine.step]))
    return method


def script(run: Recorded, engine: Engine) -> None:
    """Put the release's random numbers in the place of the engine's, where a method asks the engine for them."""
    if run.key == "rst":
        numbers = run.arrays["uniforms"].tolist()
    elif run.key == "esam":  # a tensor is kept where the number is below beta
        numbers = (~run.arrays["kept"]).astype(float).ravel().tolist()
    else:
        return
    engine.rng = random.Random(0)
    engine.rng.random = iter(numbers).__next__  # type: ignore[method-assign]


def described(told: dict[str, Any]) -> Method:
    """The method that ``meta.method`` of a file tells of."""
    given = {name: value for name, value in told.items() if name not in NO_FIELDS}
    if told["key"] == "switch":
        return Switch(when=schedule.every(told["every"], told["offset"]), inner=METHODS["sam"](**given))
    if "geometry" in told:
        given["geometry"] = GEOMETRIES[told["geometry"]]
    if "inner" in told:
        given["inner"] = described(told["inner"])
    if isinstance(told.get("rho"), dict):
        given["rho"] = schedule.follow_lr(**told["rho"]["follow_lr"])
    if told["key"] == "ausam":
        epoch = told["steps_per_epoch"]
        given |= {"warmup": told["warmup_epochs"] * epoch, "ramp": told["ramp_epochs"] * epoch}
    if told["key"] == "xsam" and told["dynamic"]:
        given["every"] = told["every"]
    if told["key"] == "vasso":
        given["geometry"] = Added(eps=told["eps"])
    if told.get("adaptive"):
        given["geometry"] = OneFactor()
    return METHODS[told["key"]](**given)


def altered(method: Method, **hooks: Callable[..., Any]) -> Method:
    """The method with some of its own functions replaced."""
    kind = type(method)
    return type(kind.__name__, (kind,), hooks)(**{f.name: getattr(method, f.name) for f in fields(method) if f.init})
