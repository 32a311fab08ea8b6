"""Xie, Pethick, Cevher, "SAMPa: Sharpness-aware Minimization Parallelized"."""

from __future__ import annotations

from reference.model import Batch
from reference.twin import Twin
from reference.vectors import Weights, lerp, scale, zeros


class SAMPa(Twin):
    """The update of the paper (NeurIPS 2024, arXiv 2410.10683), written out:

        x~_t    = x_t + rho unit(g(y_t; B_t))
        y_{t+1} = x_t + the base optimizer's step for g(y_t; B_t)        ("raw": x_t - lr g(y_t; B_t))
        d_t     = (1 - lam) g(x~_t; B_t) + lam g(y_{t+1}; B_{t+1})

    The batch passed to a step is `B_{t+1}`; `B_t` is the one held from the step before. On the very first
    step nothing is known: both gradients are taken at `x_0`, on the new batch.
    """

    def setup(self, lam: float = 0.2, lookahead: str = "base") -> None:
        self.lam, self.lookahead = lam, lookahead
        self.grad_y = zeros(self.w)
        self.held: Batch | None = None

    def direction(self, batch: Batch) -> tuple[float, Weights]:
        if self.held is None:
            held, e, ahead = batch, zeros(self.w), zeros(self.w)
        else:
            held, e = self.held, self.ascent(self.grad_y)
            if self.lookahead == "raw":
                ahead = scale(self.grad_y, -self.lr)
            else:
                ahead = self.base.preview(self.w, self.grad_y, self.lr)
        at_tilde = self.gradient(held, at=e)
        at_next_y = self.gradient(batch, at=ahead)
        loss = self.loss(batch, at=ahead)
        self.grad_y, self.held = at_next_y, batch
        return loss, lerp(at_tilde, at_next_y, self.lam)
