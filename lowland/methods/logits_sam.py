"""SAM for the output head only."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar

from torch import Tensor, nn

from lowland.core.errors import ArgumentError, ParameterError
from lowland.core.geometry import Geometry
from lowland.core.probe import Plan, Reading
from lowland.methods.base import Perturbing

if TYPE_CHECKING:
    from lowland.engine import Engine


@dataclass(frozen=True)
class Candidates:
    """Selects the head's weight by name, or without a name the weights of all linear layers, the last of them the head.

    Args:
        head: The name of the head, a module or a parameter; None for all linear layers.
    """

    head: str | None = None

    def __call__(self, module: nn.Module, name: str, parameter: Tensor) -> bool:
        """Whether this parameter is the head's weight, or may be."""
        if self.head is None:
            return isinstance(module, nn.Linear) and name.rpartition(".")[2] == "weight"
        return name in (self.head, f"{self.head}.weight")


@dataclass(frozen=True, kw_only=True)
class LogitsSAM(Perturbing):
    """logits-SAM: only the weight of the output head is perturbed, the last layer, which makes the logits.

    ``e = rho * G / ||G||`` with ``G`` the gradient of the head's weight and zero elsewhere; ``d = g(w + e)``, for all
    parameters.

    Args:
        rho: Radius, >= 0, in the norm of the head's weight.
        geometry: How G becomes a displacement; its ``select`` must be None.
        ascent_gradient: "mean" over the ranks, or each rank's own ("local"); see :class:`SAM`.
        head: The name of the head, a module such as ``"lm_head"``, or of its weight such as ``"lm_head.weight"``. None
            takes the last ``nn.Linear`` of the model, in the order of its modules.

    Cost: 2 gradients per step, one after the other, the first of them for the head's weight only: its forward keeps no
    activations of the other layers, and its backward ends at the head. So a step costs one gradient and one forward
    pass, of which the counts show 2 gradients, the first for one tensor; with ``fully_shard`` and reentrant checkpoints
    the first backward computes all gradients, and drops the others. 1 P of memory (all weights are saved, though
    one tensor moves); 2 all-reduces under data parallelism, the first of the head's weight only; 1 with
    ``ascent_gradient="local"``.

    Differs: The release runs the layers before the head once, keeps their outputs, and runs the head twice. Here the
    loss function is called twice, so that it may be any function of the model; this costs one more forward pass, which
    gives the same gradient, because those layers do not see e. With dropout the two passes have different masks, unless
    ``rng="shared"``. The head's bias is not perturbed, as in the release. A head whose weight is tied to another layer
    is refused, because that layer would move, too; in the release e acts at the output only. The release's adaptive
    form has one factor ``abs(w)``, where ``geometry=Adaptive()`` has two, as ASAM. The release computes the norm in
    float32.

    Invariants: It is SAM with ``geometry=L2(select=...)`` that selects the head's weight; with a model that is only a
    head without bias it is SAM; rho = 0 is the base optimizer.

    Use: To fine-tune large language models, for which its authors propose it, with preference losses and others. Name
    the head unless it is the last linear layer.

    Avoid: With tied embeddings. For a model whose last linear layer is no head, such as one that ends with a
    convolution, without naming the head.

    Reference: Luo, Deng, Do, Harandi, Phung, Le: Sharpness-Aware Minimization in Logit Space Efficiently Enhances
    Direct Preference Optimization. ICLR 2026, arXiv 2603.18258.
    """

    head: str | None = None
    whole_gradient: ClassVar[bool] = False
    synchronized: ClassVar[bool] = False

    def check(self) -> None:
        """See :meth:`lowland.methods.base.Method.check`."""
        if self.head is not None and (not isinstance(self.head, str) or not self.head):
            raise ArgumentError(
                f"head must be the name of a module or of a parameter, but is {self.head!r}; write the whole name of "
                'the weight, such as "lm_head.weight" or "2.weight", or None for the last linear layer'
            )
        if self.geometry.select is not None:
            raise ArgumentError(
                f"geometry must not select parameters of its own, but is {self.geometry!r}; LogitsSAM selects the "
                "head's weight, which head=… names"
            )

    def validate(self, engine: Engine) -> None:
        """See :meth:`lowland.methods.base.Method.validate`."""
        if self.head is not None and not any(engine.selected(self._ball())):
            raise ParameterError(
                f"head must name the output head of the model, whose weight is trained, but is {self.head!r}; a tied "
                "weight has the name of the first layer that holds it; the last trained parameters are "
                f"{', '.join(engine.names[-4:])}"
            )
        weight = self._last(engine) if self.head is None else engine.params[self._place(engine)]
        names = [name for name, p in engine.model.named_parameters(remove_duplicate=False) if p is weight]
        if len(names) > 1:
            raise ParameterError(
                "the head's weight must be the head's alone, because LogitsSAM perturbs nothing else, but is tied: "
                f"{' and '.join(names)} are one tensor; untie them, or use SAM"
            )

    def plan(self, engine: Engine, batch: Any) -> Plan:
        """See :meth:`lowland.methods.base.Method.plan`."""
        here = yield self.probe(batch, wrt=[radius > 0 for radius in self._radii(engine, 1.0)])
        known = self.geometry.known(engine, here.grad)
        e = self.geometry.ascent(engine.params, here.grad, self._radii(engine, self.rho), **known)
        loss, up = here.loss, self.probe(batch, at=e)
        del here, e
        there = yield up
        self._check_reached(engine, there)
        return loss, there.grad

    def _ball(self) -> Geometry:
        return replace(self.geometry, select=Candidates(self.head))

    def _place(self, engine: Engine) -> int:
        """The index of the head's weight among the parameters."""
        return max(i for i, selected in enumerate(engine.selected(self._ball())) if selected)

    def _radii(self, engine: Engine, rho: Any) -> list[float]:
        """The radius of each parameter: 0 for all but the head's weight, and for it if its group has radius 0."""
        place, radii = self._place(engine), engine.radii(rho, self._ball())
        assert isinstance(radii, list)  # because the ball selects parameters
        return [radius if i == place else 0.0 for i, radius in enumerate(radii)]

    @staticmethod
    def _last(engine: Engine) -> Tensor:
        """The weight of the last linear layer.

        Raises:
            ParameterError: There is no linear layer, or the weight is no trained parameter.
        """
        layers = [(name, module) for name, module in engine.model.named_modules() if isinstance(module, nn.Linear)]
        if not layers:
            raise ParameterError(
                "the model must have a linear layer for LogitsSAM to perturb, but has none; name the output head: "
                'LogitsSAM(head="classifier")'
            )
        name, last = layers[-1]
        weight = last._parameters.get("weight")
        if weight is None or not any(p is weight for p in engine.params):
            raise ParameterError(
                f"the last linear layer, which LogitsSAM takes for the output head, must have a trained weight, but "
                f"that of {name or 'the model'} is frozen, or computed from other parameters; name the head: "
                f'LogitsSAM(head="{engine.names[-1]}")'
            )
        return weight

    def _check_reached(self, engine: Engine, there: Reading) -> None:
        """Refuse a last linear layer that the loss does not use, because it is no head.

        Raises:
            ParameterError: The loss does not depend on its weight.
        """
        place = self._place(engine)
        if self.head is None and there.reached is not None and engine.trained[place] and not there.reached[place]:
            raise ParameterError(
                "the last linear layer, which LogitsSAM takes for the output head, must be used by the loss, but the "
                f'loss does not depend on {engine.names[place]}; name the head: LogitsSAM(head="classifier")'
            )
