"""Which parameters a method works on, and what model and optimizer must agree on."""

from __future__ import annotations

import inspect
import operator
from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn
from torch.optim import Optimizer

from lowland.core import checks
from lowland.core.errors import ArgumentError, ParameterError
from lowland.core.geometry import Geometry, Radii
from lowland.core.wrappers import short_names
from lowland.engine import owners
from lowland.engine.kinds import Kinds, check_kinds, some
from lowland.executors.registrations import Registrations

_TRAINS = operator.attrgetter("requires_grad")


class Parameters:
    """The trainable parameters of a model, with their names and their groups in the optimizers.

    Args:
        model: The model.
        optimizers: The optimizers that step its parameters.
        allow_low_precision: Accept parameters kept in bf16 or fp16.

    Raises:
        ParameterError: Model and optimizers disagree, or the parameters cannot be perturbed reliably.
    """

    def __init__(self, model: nn.Module, optimizers: Sequence[Optimizer], *, allow_low_precision: bool = False) -> None:
        named = dict(model.named_parameters())
        trainable = {n: p for n, p in named.items() if p.requires_grad}
        self.frozen = [p for p in named.values() if not p.requires_grad]
        self.names = short_names(model, list(trainable))  # a checkpoint should not know of wrappers
        self.vec: list[Tensor] = list(trainable.values())
        check_kinds(trainable, allow_low_precision)
        _check_owned(named, trainable, optimizers)
        place = {id(p): k for k, (_, group) in enumerate(_groups(optimizers)) for p in group["params"]}
        self.group = [place[id(p)] for p in self.vec]
        self._model, self._optimizers = model, optimizers
        self._grouped = [[list(group["params"]) for group in o.param_groups] for o in optimizers]
        self._places = owners.places(model, list(trainable))
        self._kinds = Kinds(self.names, self.vec)
        self._owners = [model.get_submodule(n.rpartition(".")[0]) for n in trainable]
        self._selected: dict[Geometry, list[bool]] = {}
        self._thawed: list[bool] | None = None  # which are not frozen since; None: not looked at in this step
        Registrations.watch()
        self._registrations = Registrations.count

    def check_unchanged(self, step: int, sharded: Sequence[nn.Module] = ()) -> None:
        """Refuse to go on if parameters were added, replaced or unfrozen since.

        Args:
            step: Number of the step; the whole model is walked through at 0, 1, 2, 4, 8, ..., and when any module has
                been given a parameter or a module since.
            sharded: Modules of ``fully_shard``, which may have put other tensors in the parameters' places.

        Raises:
            ParameterError: They were.
        """
        if not _same_groups(self._optimizers, self._grouped) or any(p.requires_grad for p in self.frozen):
            raise ParameterError(
                "the trainable parameters must stay those the engine was made with, but a parameter was "
                "exchanged, added or unfrozen since; make a new Engine from the same method, model and optimizer"
            )
        self._kinds.check(self.vec, self._due(step))
        self._thawed, before = None, self._registrations
        self._registrations = Registrations.count
        if self._due(step) or self._registrations != before:
            self._check_model(sharded)

    @staticmethod
    def _due(step: int) -> bool:
        """Whether everything is looked at: at steps 0, 1, 2, 4, 8, ...; at the others, what is quick."""
        return step & (step - 1) == 0

    def check_unreached(self, sharded: Sequence[nn.Module] = ()) -> None:
        """The same where a loss has not reached all parameters, as it cannot where others have taken their place.

        Raises:
            ParameterError: They have.
        """
        if not owners.in_place(self._places):
            self._check_model(sharded)

    def _check_model(self, sharded: Sequence[nn.Module]) -> None:
        """Look for all parameters in the model, wherever they are now."""
        for m in sharded:
            m.reshard()  # type: ignore[operator]
        here = {id(p): n for n, p in self._model.named_parameters() if p.requires_grad}
        known = {id(p) for p in self.vec}
        lost = [n for n, p in zip(self.names, self.vec, strict=True) if p.requires_grad and id(p) not in here]
        new = [n for i, n in here.items() if i not in known]
        if lost or new:
            raise ParameterError(
                "the trainable parameters must stay those the engine was made with, but of the model's "
                f"{some(lost or new)} {'no longer the same tensor' if lost else 'new'} (as after "
                "load_state_dict(assign=True), or where a layer was exchanged); make a new Engine, with an optimizer "
                "that holds the model's parameters"
            )
        place = {id(p): n for n, p in self._model.named_parameters()}
        if all(id(p) in place for p in self.vec):
            self._places = owners.places(self._model, [place[id(p)] for p in self.vec])

    def trained(self, among: Sequence[bool] | None) -> list[bool] | None:
        """Those of ``among`` that were not frozen since the engine was made; None stands for all."""
        if self._thawed is None:
            self._thawed = list(map(_TRAINS, self.vec))
        if all(self._thawed):
            return None if among is None else list(among)
        return self._thawed if among is None else [a and t for a, t in zip(among, self._thawed, strict=True)]

    def group_radii(self) -> list[float | None]:
        """Every parameter's radius from its group; None where the group names none."""
        # Some optimizers, Adadelta for one, have a hyperparameter of their own that is called rho.
        groups = [(g, "rho" in o.defaults) for o in self._optimizers for g in o.param_groups]
        for k, (group, own) in enumerate(groups):
            if not own and group.get("rho") is not None:
                checks.at_least(f'param_groups[{k}]["rho"]', group["rho"], 0, "rho=0 leaves the group unperturbed")
        each = [None if own else group.get("rho") for group, own in groups]
        return [each[k] for k in self.group]

    def radii(self, value: float, geometry: Geometry) -> Radii:
        """The radius for every parameter: a number where all share it, else one each, 0 for excluded ones.

        Args:
            value: The method's radius. A group's ``"rho"`` overrides it for the group's parameters.
            geometry: Its predicate excludes parameters.
        """
        groups = _groups(self._optimizers)
        chosen = [value if "rho" in o.defaults or g.get("rho") is None else g["rho"] for o, g in groups]
        for k, radius in enumerate(chosen):
            checks.at_least(f'param_groups[{k}]["rho"]', radius, 0, "rho=0 leaves the group unperturbed")
        if geometry.select is None and all(c == value for c in chosen) and self.trained(None) is None:
            return value
        taken = self.trained(self.select(geometry)) or []
        return [chosen[k] if t else 0.0 for k, t in zip(self.group, taken, strict=True)]

    def select(self, geometry: Geometry) -> list[bool]:
        """Which parameters a geometry's predicate accepts; asked once for every geometry."""
        select = geometry.select
        if select is None:
            return [True] * len(self.vec)
        if geometry not in self._selected:
            modules = zip(self._owners, self.names, self.vec, strict=True)
            self._selected[geometry] = [_answer(select, m, n, p) for m, n, p in modules]
        return self._selected[geometry]


def _answer(select: Any, owner: nn.Module, name: str, p: Tensor) -> bool:
    """What a predicate says of a parameter.

    Raises:
        ArgumentError: It cannot be called so, or says something else than yes or no.
    """
    remedy = 'write select=lambda module, name, p: name.endswith("weight")'
    if not callable(select):
        raise ArgumentError(
            f"geometry.select must be a function (module, name, parameter), but is {select!r}; {remedy}"
        )
    try:
        inspect.signature(select).bind(owner, name, p)
    except TypeError as error:
        raise ArgumentError(
            f"geometry.select must take (module, name, parameter), but cannot ({error}); {remedy}"
        ) from None
    except ValueError:  # built in
        pass
    answer = select(owner, name, p)
    if isinstance(answer, Tensor) and answer.numel() != 1:
        raise ArgumentError(
            f"geometry.select must return True or False for a parameter, but for {name} returned a tensor of shape "
            f"{tuple(answer.shape)}; {remedy}"
        )
    return bool(answer)


def _groups(optimizers: Sequence[Optimizer]) -> list[tuple[Optimizer, dict[str, Any]]]:
    return [(o, group) for o in optimizers for group in o.param_groups]


def _same_groups(optimizers: Sequence[Optimizer], known: list[list[list[Tensor]]]) -> bool:
    """Whether all groups hold the very same tensors as they did."""
    for optimizer, groups in zip(optimizers, known, strict=True):
        if len(optimizer.param_groups) != len(groups):
            return False
        for group, before in zip(optimizer.param_groups, groups, strict=True):
            now = group["params"]
            if len(now) != len(before) or not all(map(operator.is_, now, before)):
                return False
    return True


def _check_owned(named: dict[str, Any], trainable: dict[str, Any], optimizers: Sequence[Optimizer]) -> None:
    owned: dict[int, int] = {}  # by which optimizer
    for number, optimizer in enumerate(optimizers):
        for group in optimizer.param_groups:
            twice = [n for n, p in named.items() if owned.get(id(p), number) != number and _has(group["params"], p)]
            if twice:
                raise ParameterError(
                    f"a parameter must be in one optimizer, but {some(twice)} in two; give each optimizer its own"
                )
            owned |= {id(p): number for p in group["params"]}
    missing = [n for n, p in trainable.items() if id(p) not in owned]
    if missing:
        raise ParameterError(
            f"every trainable parameter of the model must be in the optimizer, but {some(missing)} "
            "missing; add them to a parameter group (with rho=0 to leave them unperturbed) or freeze them with "
            "requires_grad_(False)"
        )
    known = {id(p) for p in named.values()}
    foreign = [
        f"group {k}, number {i}, shape {tuple(p.shape)}"
        for k, (_, group) in enumerate(_groups(optimizers))
        for i, p in enumerate(group["params"])
        if id(p) not in known and p.requires_grad
    ]
    if foreign:
        raise ParameterError(
            f"every trainable parameter in the optimizer must belong to the model, but {some(foreign)} "
            "foreign to it; pass all modules that are trained: Engine(method, [model, criterion], optimizer), or use a "
            "second optimizer outside the engine"
        )


def _has(tensors: Sequence[Tensor], p: Tensor) -> bool:
    return any(t is p for t in tensors)
