"""M-ConFIG: one loss per step, scaled by a second moment of the combined direction."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from hig.conflictfree._gradient_operator import Operator, combine
from hig.conflictfree._loss_recorders import LossRecorder
from hig.conflictfree._momentum_operator import EPSILON, MomentumOperator, copied, zero_moment
from hig.conflictfree._validation import check_state

__all__ = ["PseudoMomentumOperator"]


class PseudoMomentumOperator(MomentumOperator):
    r"""M-ConFIG: first moments per loss, and one second moment of their combined direction.

    Liu, Chu, Thuerey, ICLR 2025, arXiv 2408.11104, algorithm 1. The direction is scaled like a
    step of Adam: use it with plain ``torch.optim.SGD``.

    All arguments are those of :class:`MomentumOperator`.

    Attributes:
        fake_m: first moment of the direction, (P,); None before the first call.
        s: second moment of the direction, (P,); None before the first call.
        t: number of directions since every loss has had a gradient.
    """

    def __init__(
        self,
        num_vectors: int,
        beta_1: float = 0.9,
        beta_2: float = 0.999,
        gradient_operator: Operator | None = None,
        loss_recorder: LossRecorder | None = None,
    ):
        super().__init__(num_vectors, beta_1, beta_2, gradient_operator, loss_recorder)
        self.fake_m: Tensor | None = None
        self.t = 0

    def calculate_gradient(
        self, indexes: int | Sequence[int], grads: Tensor | Sequence[Tensor], losses: Any = None
    ) -> Tensor:
        """See :meth:`MomentumOperator.calculate_gradient`.

        A gradient that holds NaN or Inf leaves the memory unchanged.

        Raises:
            NonFiniteError: the moments, or the losses' directions, left the range of their type.
            ValueError: shapes or numbers of losses do not match; the memory is unchanged.
        """
        with torch.no_grad():
            if (unknown := self.non_finite(indexes, grads)) is not None:
                return unknown
            indexes, rows, losses = self._preprocess_gradients_losses(indexes, grads, losses)
            self.remember(indexes, rows)
            if not self.all_initialized:
                return torch.zeros_like(rows[0])
            assert self.fake_m is not None
            self.t += 1
            combined = combine(self.gradient_operator, self.first_moments(), losses)
            # The gradient that would change the first moment of the direction from its last value
            # to this one: it replaces a gradient of the direction, which was never computed.
            moment = combined * (1 - self.beta_1**self.t)
            pseudo = torch.sub(moment, self.fake_m, alpha=self.beta_1).div_(1 - self.beta_1)
            self.fake_m = moment
            self.s = (self.s * self.beta_2).addcmul_(pseudo, pseudo, value=1 - self.beta_2)
            second = torch.div(self.s, 1 - self.beta_2**self.t, out=pseudo)
            return (combined / second.sqrt_().add_(EPSILON)).to(rows[0].dtype)

    def _create_moments(self, like: Tensor) -> None:
        """See :meth:`MomentumOperator._create_moments`."""
        if self.m is None or self.s is None or self.fake_m is None:
            self.m = self._zero_moments(like)
            self.s, self.fake_m = zero_moment(like), zero_moment(like)

    def state_dict(self) -> dict[str, Any]:
        """See :meth:`MomentumOperator.state_dict`."""
        return {**super().state_dict(), "fake_m": copied(self.fake_m), "t": self.t}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """See :meth:`MomentumOperator.load_state_dict`.

        Raises:
            ValueError: the state is of another number of losses, or of other parts.
        """
        check_state(state_dict, self, "fake_m", "t")
        super().load_state_dict(state_dict)
        self.fake_m, self.t = copied(state_dict["fake_m"]), state_dict["t"]
