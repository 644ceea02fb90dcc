"""A parameterization for scmreg: the network predicts noise minus data, whatever the process.

scm show parameterization/example
scm run --objective diffusion --parameterization example --steps 200
"""

from __future__ import annotations

import scmreg
from scmreg.parameterization import Preconditioning
from torch import Tensor

scmreg_api = (1, 0)


class Example(scmreg.Parameterization, name="example"):
    """Predict noise minus data: ``F = eps - x_0``.

    Both follow from ``F`` and ``x = alpha x_0 + sigma eps``. Nothing is divided by ``alpha`` or ``sigma`` alone, so
    there is no pole at either end, and ``f(x, 0) = x`` holds.
    """

    formula = "D = (x - sigma F)/(alpha + sigma),  eps = (x + alpha F)/(alpha + sigma),  c_in = 1/v"

    def preconditioning(self, process: scmreg.Process, t: Tensor) -> Preconditioning:
        """Return the coefficients at times ``t``, each of shape ``(B,)``."""
        at = process.coefficients(t)
        share = 1 / (at.alpha + at.sigma)
        return Preconditioning(
            c_skip=share,
            c_out=-at.sigma * share,
            n_skip=share,
            n_out=at.alpha * share,
            c_in=1 / process.std(t),
        )


@scmreg.hookimpl
def scmreg_components() -> list[type[scmreg.Component]]:
    """List what this plugin adds."""
    return [Example]
