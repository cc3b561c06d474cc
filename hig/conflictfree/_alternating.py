"""Alternating backward passes: one loss per step."""

from typing import Any

from torch import Tensor

from hig._torch.ranks import ProcessGroup, Ranks, check_process_group
from hig.arguments import check_choice, check_count
from hig.conflictfree._backward import accumulate, require_reached
from hig.conflictfree._loss_gradients import differentiate
from hig.conflictfree._momentum_operator import MomentumOperator
from hig.conflictfree._non_finite import NON_FINITE, is_finite, require_finite
from hig.conflictfree._parameter_vectors import Parameters, trainable
from hig.conflictfree._pseudo_momentum import PseudoMomentumOperator
from hig.conflictfree._validation import check_state
from hig.errors import described

__all__ = ["AlternatingBackward"]


class AlternatingBackward:
    """Backward pass of one loss per step, in turn; moments represent the other losses.

    A step costs one backward pass, independent of the number of losses::

        alternating = AlternatingBackward(network.parameters(), num_losses=3)
        optimizer = torch.optim.SGD(network.parameters(), lr=1e-3)
        for batch in data:
            optimizer.zero_grad()
            alternating.backward(loss_functions[alternating.next_loss](network, batch))
            optimizer.step()

    Args:
        parameters: see :func:`backward`.
        num_losses: number of losses.
        operator: an operator with a memory for that many losses;
            ``PseudoMomentumOperator(num_losses)`` if None, to be used with plain SGD.
        process_group: see :func:`backward`.

    Attributes:
        next_loss: number of the loss that ``backward`` expects next.
        operator: the operator; its ``report`` is that of the last direction.

    Raises:
        TypeError: the number of losses is not an integer, or the operator has no memory.
        ValueError: the operator is for another number of losses, or nothing requires a gradient.
    """

    def __init__(
        self,
        parameters: Parameters,
        num_losses: int,
        operator: MomentumOperator | None = None,
        *,
        process_group: ProcessGroup = "auto",
    ):
        remedy = "the arguments are AlternatingBackward(parameters, num_losses, operator)"
        num_losses = check_count(num_losses, "num_losses", remedy)
        self.operator = PseudoMomentumOperator(num_losses) if operator is None else operator
        if not isinstance(self.operator, MomentumOperator):
            raise TypeError(
                f"the operator must have a memory, got {described(operator)}; wrap it: "
                f"PseudoMomentumOperator({num_losses}, gradient_operator=...)"
            )
        if self.operator.num_vectors != num_losses:
            raise ValueError(
                f"the operator is for {self.operator.num_vectors} losses, num_losses is "
                f"{num_losses}; construct both with the same number"
            )
        check_process_group(process_group)
        self.next_loss = 0
        self._process_group = process_group
        self._num_losses = num_losses
        self._parameters = trainable(parameters)
        self._reached = [False] * len(self._parameters)

    def backward(self, loss: Tensor, retain_graph: bool = False, non_finite: str = "raise") -> None:
        """Add the direction to ``.grad``; it is zero until every loss has been seen once.

        Args:
            loss: the loss of number ``next_loss``, a scalar.
            retain_graph: keep its graph for another pass.
            non_finite: see :func:`backward`; with "pass" the same loss is expected again.

        Raises:
            NonFiniteError: its gradient holds NaN or Inf; nothing has changed.
            RankError: another process rank failed; nothing has changed.
            TypeError: it is not a real floating-point tensor.
            ValueError: it is not a scalar with a graph; after the first round no loss has been
                found to depend on any parameter; or ``non_finite`` is neither "raise" nor "pass".
        """
        check_choice(non_finite, "non_finite", NON_FINITE)
        ranks = Ranks(self._process_group)
        if ranks.size > 1:
            remedy = "load the same state on all ranks, and call backward as often"
            ranks.agree_on({"next_loss": (self.next_loss, remedy)})
        matrix, reached = differentiate([loss], self._parameters, "separate", retain_graph, ranks)
        reached = [a or b for a, b in zip(self._reached, reached, strict=True)]
        if self.next_loss == self._num_losses - 1:
            require_reached(reached)
        direction = self.operator.calculate_step([self.next_loss], matrix, [loss.detach()])
        if non_finite == "raise":
            require_finite(direction)
        finite = is_finite(direction)
        accumulate(direction, self._parameters, reached if finite else [True] * len(reached))
        if finite:
            self._reached = reached
            self.next_loss = (self.next_loss + 1) % self._num_losses

    def state_dict(self) -> dict[str, Any]:
        """Return the next loss and the memory of the operator, for an exact resume."""
        return {
            "next_loss": self.next_loss,
            "reached": list(self._reached),
            "operator": self.operator.state_dict(),
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Resume from the state of another object of this class.

        Raises:
            ValueError: the state is of other parameters or another number of losses.
        """
        check_state(state_dict, self, "next_loss", "reached", "operator")
        count = len(state_dict["reached"])
        if count != len(self._parameters):
            raise ValueError(f"the state is of {count} parameters, got {len(self._parameters)}")
        self.operator.load_state_dict(state_dict["operator"])
        self.next_loss, self._reached = state_dict["next_loss"], list(state_dict["reached"])
