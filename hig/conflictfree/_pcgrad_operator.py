"""PCGrad as an operator."""

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from hig.conflictfree._gradient_operator import GradientOperator, Gradients
from hig.conflictfree._pcgrad import pcgrad

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
        return self.combined(grads, lambda matrix: (pcgrad(matrix), 1.0))
