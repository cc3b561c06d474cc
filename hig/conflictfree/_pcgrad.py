"""PCGrad: projection of conflicting gradients."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from torch import Tensor

from hig.conflictfree import _few as few
from hig.conflictfree._gradient_matrix import Combination, GradientMatrix
from hig.conflictfree._gradient_operator import GradientOperator, Gradients

__all__ = ["PCGradOperator"]


class PCGradOperator(GradientOperator):
    """PCGrad: the sum of the gradients, each without its component against any other.

    Yu et al., NeurIPS 2020, arXiv 2001.06782; in the order of the losses.
    """

    def calculate_gradient(self, grads: Gradients, losses: Sequence[Any] | None = None) -> Tensor:
        """See :meth:`GradientOperator.calculate_gradient`; ``losses`` are not used.

        Raises:
            ValueError: the gradients do not form a matrix (m, P).
        """
        return self.combined(grads, _pcgrad)


def _pcgrad(gradients: GradientMatrix) -> tuple[Combination, float]:
    """Sum of the gradients, each without its component against any other, and the factor 1.

    Yu et al., NeurIPS 2020, arXiv 2001.06782, algorithm 1; the others are gone through in the
    order of the losses instead of a random one.
    """
    if gradients.few:
        factors = few.projected(gradients.angles, gradients.lengths)
        return gradients.combination(factors), 1.0
    cosines = np.array(gradients.angles)
    # Row i: gradient i in terms of unit gradients. Its product with unit gradient j is then row i
    # times column j of the cosines, and what is subtracted changes entry j of that row alone.
    projected = np.diag(gradients.lengths)
    for other in range(len(cosines)):
        conflict = np.minimum(projected @ cosines[:, other], 0.0)
        conflict[other] = 0.0  # a gradient is not projected against itself
        projected[:, other] -= conflict
    return gradients.combination(projected.sum(0).tolist()), 1.0
