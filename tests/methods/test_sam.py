"""A1 and A2: what SAM's formula implies.

Float64 throughout. What is equal in exact arithmetic agrees here to `SAME`: rounding times a few dozen steps.
"""

from __future__ import annotations

import numpy as np
import pytest
from reference.cases import some
from reference.drive import Run, trajectory
from reference.model import Quadratic, parabola

from lowland import SAM, vec


@pytest.mark.parametrize("rho", [0.05, 1.0])
def test_a1_on_a_quadratic_the_sam_gradient_is_known(rho):
    problem = Quadratic.random(2)
    run = Run(problem, problem.weights(1), SAM(rho=rho))
    for batch in some(5, problem):
        g = problem.gradient(run.w, batch)[0]
        run.step(batch, 0.1)
        np.testing.assert_allclose(run.grad[0] - g, rho * problem.A @ g / np.linalg.norm(g), rtol=1e-9)


@pytest.mark.parametrize(("eta", "rho"), [(0.1, 0.5), (0.3, 0.1), (0.45, 1.0)])
def test_a2_on_a_parabola_it_ends_in_a_two_cycle(eta, rho):
    problem = parabola()
    run = Run(problem, [np.array([1.7])], SAM(rho=rho))
    path = [w[0][0] for w in trajectory(run, [problem.batch(0, noise=0.0)] * 150, [eta] * 150)]
    np.testing.assert_allclose(np.abs(path[-4:]), eta * rho / (1 - eta), rtol=1e-9)
    assert path[-1] * path[-2] < 0


def test_an_ascent_of_one_s_own_is_used():
    class Backwards(SAM):
        def ascent(self, engine, grad):
            return vec.scale(super().ascent(engine, grad), -1.0)

    problem = Quadratic.random(2)
    run = Run(problem, problem.weights(1), Backwards(rho=0.05))
    batch = some(1, problem)[0]
    g = problem.gradient(run.w, batch)[0]
    run.step(batch, 0.1)
    np.testing.assert_allclose(run.grad[0] - g, -0.05 * problem.A @ g / np.linalg.norm(g), rtol=1e-9)
