"""IMTL-G: equal projections on all gradients."""

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from hig.conflictfree._gradient_matrix import Combination, GradientMatrix
from hig.conflictfree._gradient_operator import GradientOperator, Gradients

__all__ = ["IMTLGOperator"]


class IMTLGOperator(GradientOperator):
    """IMTL-G: weights that sum to 1 and give equal projections on all gradients.

    Liu et al., ICLR 2021, "Towards impartial multi-task learning". Zero if no such weights exist.
    """

    def calculate_gradient(self, grads: Gradients, losses: Sequence[Any] | None = None) -> Tensor:
        """See :meth:`GradientOperator.calculate_gradient`; ``losses`` are not used.

        Raises:
            ValueError: the gradients do not form a matrix (m, P).
        """
        return self.combined(grads, _imtl_g)


def _imtl_g(gradients: GradientMatrix) -> tuple[Combination, float]:
    r"""Combination with equal projections on all gradients and weights that sum to 1.

    :math:`g = \sum_i \alpha_i g_i` with :math:`\sum_i \alpha_i = 1` and equal
    :math:`u_i \cdot g` (Liu et al., ICLR 2021, "Towards impartial multi-task learning",
    equation 6). With the :math:`u_i` as rows of U, g lies along :math:`U^+ 1`: it is the
    direction of ConFIG with another length, which may be negative.

    Returns:
        A combination and the factor that makes the weights sum to 1; 0 if no factor does.
    """
    combination = gradients.pseudo_inverse([1.0] * len(gradients.lengths))
    # A factor b_i of the unit gradient u_i is a weight b_i / |g_i| of the gradient g_i itself.
    pairs = zip(combination.factors, gradients.lengths, strict=True)
    weights = [factor / length for factor, length in pairs if length > 0]
    total = sum(weights)
    if abs(total) <= gradients.rcond * sum(map(abs, weights)):  # they cancel, up to rounding
        return combination, 0.0
    return combination, 1 / total
