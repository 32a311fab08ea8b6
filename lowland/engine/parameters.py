"""The trainable parameters of an engine, their radii, and the checks that model and optimizer agree about them."""

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
from lowland.engine.kinds import Kinds, check_kinds, check_modules, some
from lowland.executors.registrations import Registrations

_TRAINS, _GRAD = operator.attrgetter("requires_grad"), operator.attrgetter("grad")


class Parameters:
    """The trainable parameters of a model, with their names and their groups in the optimizers.

    Args:
        model: The model.
        optimizers: The optimizers that step its parameters.

    Attributes:
        names: The names of the parameters, without the prefixes of wrappers.
        vec: The parameters.
        frozen: The parameters of the model that are not trainable.
        group: The index of each parameter's group, counted over all optimizers.
        owners: The module of each parameter; of a tied one the first.

    Raises:
        ParameterError: Model and optimizers disagree, or the parameters cannot be perturbed reliably.
    """

    def __init__(self, model: nn.Module, optimizers: Sequence[Optimizer]) -> None:
        check_modules(model)
        named = dict(model.named_parameters())
        trainable = {n: p for n, p in named.items() if p.requires_grad}
        self.frozen = [p for p in named.values() if not p.requires_grad]
        self.names = short_names(model, list(trainable))  # so that a checkpoint is independent of wrappers
        self.vec: list[Tensor] = list(trainable.values())
        check_kinds(trainable)
        _check_owned(named, trainable, optimizers)
        place = {id(p): k for k, (_, group) in enumerate(_groups(optimizers)) for p in group["params"]}
        self.group = [place[id(p)] for p in self.vec]
        self._model, self._optimizers = model, optimizers
        self._grouped = [[list(group["params"]) for group in o.param_groups] for o in optimizers]
        self._places = owners.places(model, list(trainable))
        self._kinds = Kinds(self.names, self.vec)
        self.owners = [model.get_submodule(n.rpartition(".")[0]) for n in trainable]
        self._selected: dict[Geometry, list[bool]] = {}
        self._trainable: list[bool] | None = None  # which are not frozen now; None until it is needed in a step
        self._held = [False] * len(self.vec)  # which had a gradient when the step began
        Registrations.watch()
        self._registrations = Registrations.count

    def check_unchanged(self, step: int, sharded: Sequence[nn.Module] = ()) -> None:
        """Refuse a step if parameters were added, replaced, unfrozen or converted since the engine was made.

        Args:
            step: The number of the step. The model's parameters are searched in steps 0, 1, 2, 4, 8, ..., and after any
                module has registered a parameter or a module.
            sharded: Modules of ``fully_shard``, which may have replaced their parameters by gathered ones.

        Raises:
            ParameterError: The parameters have changed.
        """
        if not _same_groups(self._optimizers, self._grouped) or any(p.requires_grad for p in self.frozen):
            raise ParameterError(
                "the trainable parameters must stay those the engine was made with, but a parameter was "
                "exchanged, added or unfrozen since; make a new Engine from the same method, model and optimizer"
            )
        self._kinds.check(self.vec, self._due(step))
        self._trainable, before = None, self._registrations
        self._held = self.held(under_way=False)
        self._registrations = Registrations.count
        if self._due(step) or self._registrations != before:
            self._check_model(sharded)

    @staticmethod
    def _due(step: int) -> bool:
        """Whether the step, one of 0, 1, 2, 4, 8, ..., has the expensive checks; other steps have the cheap ones."""
        return step & (step - 1) == 0

    def check_unreached(self, sharded: Sequence[nn.Module] = ()) -> None:
        """Refuse replaced parameters after a step whose losses have not reached all; see :meth:`check_unchanged`."""
        if not owners.in_place(self._places):
            self._check_model(sharded)

    def _check_model(self, sharded: Sequence[nn.Module]) -> None:
        """Refuse a model whose trainable parameters are not those of the engine; their names may have changed."""
        for m in sharded:
            m.reshard()  # type: ignore[operator]
        current = {id(p): n for n, p in self._model.named_parameters() if p.requires_grad}
        known = {id(p) for p in self.vec}
        lost = [n for n, p in zip(self.names, self.vec, strict=True) if p.requires_grad and id(p) not in current]
        new = [n for i, n in current.items() if i not in known]
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
        """The parameters of ``among`` that have not been frozen since the engine was made; None means all."""
        if self._trainable is None:
            self._trainable = list(map(_TRAINS, self.vec))
        if all(self._trainable):
            return None if among is None else list(among)
        return self._trainable if among is None else [a and t for a, t in zip(among, self._trainable, strict=True)]

    def held(self, *, under_way: bool) -> list[bool]:
        """Which parameters have a ``.grad``. A step under way has set it aside: then, which had one when it began."""
        return self._held if under_way else [g is not None for g in map(_GRAD, self.vec)]

    def group_radii(self) -> list[float | None]:
        """The radius of each parameter's group, checked; None for a group without ``"rho"``."""
        # In some optimizers, such as Adadelta, rho is another hyperparameter.
        groups = [(g, "rho" in o.defaults) for o in self._optimizers for g in o.param_groups]
        for k, (group, own) in enumerate(groups):
            if not own and group.get("rho") is not None:
                checks.at_least(f'param_groups[{k}]["rho"]', group["rho"], 0, "rho=0 leaves the group unperturbed")
        each = [None if own else group.get("rho") for group, own in groups]
        return [each[k] for k in self.group]

    def radii(self, value: float, geometry: Geometry) -> Radii:
        """The radius of the parameters: one number for all, or one per parameter, 0 for excluded ones.

        Args:
            value: The method's radius. A group's ``"rho"`` overrides it for the group's parameters.
            geometry: The geometry, whose ``select`` excludes parameters.
        """
        groups = _groups(self._optimizers)
        chosen = [value if "rho" in o.defaults or g.get("rho") is None else g["rho"] for o, g in groups]
        for k, radius in enumerate(chosen):
            checks.at_least(f'param_groups[{k}]["rho"]', radius, 0, "rho=0 leaves the group unperturbed")
        if geometry.select is None and all(c == value for c in chosen) and self.trained(None) is None:
            return value
        perturbed = self.trained(self.select(geometry)) or []
        return [chosen[k] if p else 0.0 for k, p in zip(self.group, perturbed, strict=True)]

    def select(self, geometry: Geometry) -> list[bool]:
        """Which parameters a geometry's ``select`` accepts; it is called once per geometry and parameter."""
        select = geometry.select
        if select is None:
            return [True] * len(self.vec)
        if geometry not in self._selected:
            modules = zip(self.owners, self.names, self.vec, strict=True)
            self._selected[geometry] = [_accepts(select, m, n, p) for m, n, p in modules]
        return self._selected[geometry]


def _accepts(select: Any, owner: nn.Module, name: str, p: Tensor) -> bool:
    """Whether ``select`` accepts a parameter.

    Raises:
        ArgumentError: It cannot be called with module, name and parameter, or returns no truth value.
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
    except ValueError:  # Python does not know the signature of a built-in function
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
    """Whether all groups contain the same tensors as in ``known``."""
    for optimizer, groups in zip(optimizers, known, strict=True):
        if len(optimizer.param_groups) != len(groups):
            return False
        for group, before in zip(optimizer.param_groups, groups, strict=True):
            current = group["params"]
            if len(current) != len(before) or not all(map(operator.is_, current, before)):
                return False
    return True


def _check_owned(named: dict[str, Any], trainable: dict[str, Any], optimizers: Sequence[Optimizer]) -> None:
    owned: dict[int, int] = {}  # the index of each parameter's optimizer
    for number, optimizer in enumerate(optimizers):
        for group in optimizer.param_groups:
            shared = [n for n, p in named.items() if owned.get(id(p), number) != number and _has(group["params"], p)]
            if shared:
                raise ParameterError(
                    f"a parameter must be in one optimizer, but {some(shared)} in two; give each optimizer its own"
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
