"""Impartial multi-task learning, its gradient form."""

from hig.conflictfree._gradient_matrix import Combination, GradientMatrix

__all__ = ["imtl_g"]


def imtl_g(gradients: GradientMatrix) -> tuple[Combination, float]:
    r"""Combination with equal projections on all gradients and weights that sum to 1 (IMTL-G).

    :math:`g = \sum_i \alpha_i g_i` with :math:`\sum_i \alpha_i = 1` and equal
    :math:`u_i \cdot g` (Liu et al., ICLR 2021, "Towards impartial multi-task learning",
    equation 6). With the :math:`u_i` as rows of U, g lies along :math:`U^+ 1`: it is the
    direction of ConFIG with another length, which may be negative.

    Args:
        gradients: of m losses. Zero gradients are left out.

    Returns:
        A combination and the factor that makes the weights sum to 1; 0 where no factor does.
    """
    combination = gradients.pseudo_inverse([1.0] * len(gradients.lengths))
    pairs = zip(combination.factors, gradients.lengths, strict=True)
    alphas = [coefficient / norm for coefficient, norm in pairs if norm > 0]
    total = sum(alphas)
    if abs(total) <= gradients.rcond * sum(map(abs, alphas)):
        return combination, 0.0
    return combination, 1 / total
