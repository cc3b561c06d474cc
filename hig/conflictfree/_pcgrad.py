"""Projecting conflicting gradients."""

import numpy as np

from hig.conflictfree import _few as few
from hig.conflictfree._gradient_matrix import Combination, GradientMatrix

__all__ = ["pcgrad"]


def pcgrad(gradients: GradientMatrix) -> Combination:
    """Sum of the gradients, each without its component against any other (PCGrad).

    Yu et al., NeurIPS 2020, arXiv 2001.06782, algorithm 1; the others are gone through in the
    order of the losses instead of a random one.

    Args:
        gradients: of m losses. Zero gradients are left out.

    Returns:
        The sum, with its length.
    """
    if gradients.few:
        return gradients.combination(few.projected(gradients.angles, gradients.lengths))
    cosines = np.array(gradients.angles)
    projected = np.diag(gradients.lengths)  # row i: gradient i, in terms of unit gradients
    for other in range(len(cosines)):
        conflict = np.minimum(projected @ cosines[:, other], 0.0)
        conflict[other] = 0.0
        projected[:, other] -= conflict
    return gradients.combination(projected.sum(0).tolist())
