"""One loss per step, each scaled by a second moment of its own."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from hig.conflictfree._momentum import EPSILON, MomentumOperator, column
from hig.conflictfree._operator import combine

__all__ = ["SeparateMomentumOperator"]


class SeparateMomentumOperator(MomentumOperator):
    r"""First and second moments per loss; what is combined is the step of Adam of each loss.

    Its authors found :class:`PseudoMomentumOperator` better. Use it with plain
    ``torch.optim.SGD``.

    Args:
        num_vectors: see :class:`MomentumOperator`.
        beta_1: see :class:`MomentumOperator`.
        beta_2: see :class:`MomentumOperator`.
        gradient_operator: see :class:`MomentumOperator`.
        loss_recorder: see :class:`MomentumOperator`.

    Attributes:
        s: second moments, (m, P); None before the first call.
    """

    def calculate_gradient(
        self, indexes: int | Sequence[int], grads: Tensor | Sequence[Tensor], losses: Any = None
    ) -> Tensor:
        """See :meth:`MomentumOperator.calculate_gradient`.

        Raises:
            NonFiniteError: a gradient holds NaN or Inf; the memory is unchanged.
            ValueError: shapes or numbers of losses do not match; the memory is unchanged.
        """
        with torch.no_grad():
            indexes, rows, losses = self.receive(indexes, grads, losses)
            self.remember(indexes, rows)
            if self.s is None:
                self.s = rows.new_zeros((self.num_vectors, rows.shape[1]))
            for index, row in zip(indexes, rows, strict=True):
                self.s[index].mul_(self.beta_2).addcmul_(row, row, value=1 - self.beta_2)
            if not self.all_initialized:
                return torch.zeros_like(rows[0])
            second = self.s / column([1 - self.beta_2**t for t in self.t_grads], self.s)
            steps = self.first_moments() / (second.sqrt_() + EPSILON)
            return combine(self.gradient_operator, steps, losses)
