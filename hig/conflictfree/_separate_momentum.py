"""Momentum operator with first and second moments of each loss."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from hig.conflictfree._gradient_operator import combine
from hig.conflictfree._momentum_operator import EPSILON, MomentumOperator, column

__all__ = ["SeparateMomentumOperator"]


class SeparateMomentumOperator(MomentumOperator):
    r"""Combination of the steps that Adam would take for each loss alone.

    Its authors found :class:`PseudoMomentumOperator` better. Use it with plain
    ``torch.optim.SGD``.

    All arguments are those of :class:`MomentumOperator`.

    Attributes:
        s: second moments, a list of m vectors (P,); None before the first call.
    """

    def calculate_gradient(
        self, indexes: int | Sequence[int], grads: Tensor | Sequence[Tensor], losses: Any = None
    ) -> Tensor:
        """See :meth:`MomentumOperator.calculate_gradient`.

        A gradient that holds NaN or Inf leaves the memory unchanged.

        Raises:
            NonFiniteError: the moments left the range of their type.
            ValueError: shapes or numbers of losses do not match; the memory is unchanged.
        """
        with torch.no_grad():
            if (unknown := self.non_finite(indexes, grads)) is not None:
                return unknown
            indexes, rows, losses = self._preprocess_gradients_losses(indexes, grads, losses)
            self.remember(indexes, rows)
            for index, row in zip(indexes, rows, strict=True):
                moment = self.s[index] * self.beta_2
                row = row.to(moment.dtype)
                self.s[index] = moment.addcmul_(row, row, value=1 - self.beta_2)
            if not self.all_initialized:
                return torch.zeros_like(rows[0])
            second = torch.stack(list(self.s))
            second = second.div_(column([1 - self.beta_2**t for t in self.t_grads], second))
            steps = self.first_moments().div_(second.sqrt_().add_(EPSILON))
            return combine(self.gradient_operator, steps, losses).to(rows[0].dtype)

    def _create_moments(self, like: Tensor) -> None:
        """See :meth:`MomentumOperator._create_moments`."""
        if self.m is None or self.s is None:
            self.m, self.s = self._zero_moments(like), self._zero_moments(like)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """See :meth:`MomentumOperator.load_state_dict`.

        Raises:
            ValueError: the state is of another number of losses, or of other parts.
        """
        super().load_state_dict(state_dict)
        self.s = None if self.s is None else list(self.s)
