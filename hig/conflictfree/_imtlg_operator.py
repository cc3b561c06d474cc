"""IMTL-G as an operator."""

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from hig.conflictfree._gradient_operator import GradientOperator, Gradients
from hig.conflictfree._imtlg import imtl_g

__all__ = ["IMTLGOperator"]


class IMTLGOperator(GradientOperator):
    """IMTL-G: weights that sum to 1 and give equal projections on all gradients.

    Liu et al., ICLR 2021, "Towards impartial multi-task learning". Zero where no such weights
    exist.
    """

    def calculate_gradient(self, grads: Gradients, losses: Sequence[Any] | None = None) -> Tensor:
        """See :meth:`GradientOperator.calculate_gradient`; ``losses`` are not used.

        Raises:
            ValueError: the gradients do not form a matrix (m, P).
        """
        return self.combined(grads, imtl_g)
