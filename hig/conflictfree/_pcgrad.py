"""Projecting conflicting gradients."""

import numpy as np
import torch

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
    cosines = gradients.cosines.numpy()  # a call of numpy on so few numbers costs half of torch's
    projected = np.diag(gradients.norms.numpy())  # row i: gradient i, in terms of unit gradients
    for other in range(len(cosines)):
        conflict = np.minimum(projected @ cosines[:, other], 0.0)
        conflict[other] = 0.0
        projected[:, other] -= conflict
    return gradients.combination(torch.from_numpy(projected.sum(0)))
