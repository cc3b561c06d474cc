"""IMTL-G as an operator."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from hig.conflictfree._gradient_matrix import GradientMatrix
from hig.conflictfree._imtlg import imtl_g
from hig.conflictfree._operator import GradientOperator, Gradients

__all__ = ["IMTLGOperator"]


class IMTLGOperator(GradientOperator):
    """IMTL-G: weights that sum to 1 and give equal projections on all gradients.

    Liu et al., ICLR 2021, "Towards impartial multi-task learning". Zero where no such weights
    exist.
    """

    def calculate_gradient(self, grads: Gradients, losses: Sequence[Any] | None = None) -> Tensor:
        """See :meth:`GradientOperator.calculate_gradient`; ``losses`` are not used.

        Raises:
            NonFiniteError: a gradient holds NaN or Inf.
            ValueError: the gradients do not form a matrix (m, P).
        """
        with torch.no_grad():
            matrix = GradientMatrix(grads)
            return self.scaled(matrix, *imtl_g(matrix))
