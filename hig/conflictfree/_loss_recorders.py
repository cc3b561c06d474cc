"""Loss recorders: values of all losses, of which a step evaluates only some."""

from collections.abc import Iterable, Sequence
from typing import Any

from torch import Tensor

from hig.arguments import FRACTION, check_count, check_number
from hig.conflictfree._validation import check_index, check_state

__all__ = ["LatestLossRecorder", "LossRecorder", "MomentumLossRecorder", "as_list"]


def as_list(values: Any) -> list[Any]:
    """Return a value, or a sequence, array or tensor of values, as a list."""
    if getattr(values, "ndim", 1) == 0 or not isinstance(values, Iterable):
        return [values]
    return list(values)


class LossRecorder:
    """Base class of the loss recorders: derived classes define ``record_loss``.

    Args:
        num_losses: how many losses there are.

    Attributes:
        num_losses: as given.
        current_losses: recorded value of each loss; 0.0 before it was first recorded.
    """

    def __init__(self, num_losses: int):
        self.num_losses = num_losses = check_count(num_losses, "num_losses")
        self.current_losses: list[Any] = [0.0] * num_losses

    def record_loss(self, losses_indexes: int | Sequence[int], losses: Any) -> list[Any]:
        """Record the values of some losses.

        Args:
            losses_indexes: numbers of these losses, or one number.
            losses: their values, or one; tensors are kept without their graph.

        Returns:
            Recorded values of all losses.

        Raises:
            NotImplementedError: in this base class.
        """
        raise NotImplementedError(
            f"{type(self).__name__} must define record_loss(losses_indexes, losses); or use "
            "LatestLossRecorder(num_losses)"
        )

    def record_all_losses(self, losses: Sequence[Any]) -> list[Any]:
        """Record a value of every loss.

        Args:
            losses: one value per loss.

        Returns:
            Recorded values of all losses.

        Raises:
            ValueError: there is not one value per loss.
        """
        if len(losses) != self.num_losses:
            raise ValueError(f"there are {self.num_losses} losses, got {len(losses)} values")
        return self.record_loss(list(range(self.num_losses)), losses)

    def state_dict(self) -> dict[str, Any]:
        """Return the recorded values, for an exact resume."""
        return {"current_losses": list(self.current_losses)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Resume from the state of another recorder.

        Raises:
            ValueError: the state is of another number of losses.
        """
        check_state(state_dict, self, "current_losses")
        count = len(state_dict["current_losses"])
        if count != self.num_losses:
            raise ValueError(f"the state is of {count} losses, the recorder of {self.num_losses}")
        self.current_losses = list(state_dict["current_losses"])

    def _preprocess_losses(
        self, losses_indexes: int | Sequence[int], losses: Any
    ) -> tuple[list[int], list[Any]]:
        """Return numbers and values as lists; user-defined recorders call it first."""
        return as_list(losses_indexes), as_list(losses)

    def _pairs(self, indexes: int | Sequence[int], losses: Any) -> list[tuple[int, object]]:
        """Return pairs of a loss number and its value, both checked."""
        indexes, losses = self._preprocess_losses(indexes, losses)
        if len(indexes) != len(losses):
            raise ValueError(
                f"there must be one value per loss, got {len(losses)} for losses {indexes}"
            )
        indexes = [check_index(index, self.num_losses) for index in indexes]
        values = [loss.detach() if isinstance(loss, Tensor) else loss for loss in losses]
        return list(zip(indexes, values, strict=True))


class LatestLossRecorder(LossRecorder):
    """Loss recorder that keeps the latest value of each loss.

    Args:
        num_losses: how many losses there are.
    """

    def record_loss(self, losses_indexes: int | Sequence[int], losses: Any) -> list[Any]:
        """See :meth:`LossRecorder.record_loss`.

        Raises:
            ValueError: numbers and values do not match.
        """
        for index, loss in self._pairs(losses_indexes, losses):
            self.current_losses[index] = loss
        return list(self.current_losses)


class MomentumLossRecorder(LossRecorder):
    """Loss recorder that keeps a bias-corrected moving average of each loss.

    Args:
        num_losses: how many losses there are.
        betas: weight of earlier values in [0, 1), one for all losses or one for each.

    Attributes:
        betas: one per loss.
        m: the averages before bias correction.
        t: number of values recorded for each loss.

    Raises:
        TypeError: a beta is not a number, or ``num_losses`` is not an integer.
        ValueError: a number is out of its range, or there is not one beta per loss.
    """

    def __init__(self, num_losses: int, betas: float | Sequence[float] = 0.9):
        super().__init__(num_losses)
        self.betas = as_list(betas)
        if len(self.betas) == 1:
            self.betas = self.betas * num_losses
        if len(self.betas) != num_losses:
            raise ValueError(
                f"betas must be a number in [0, 1) or one per loss ({num_losses}), got {betas}"
            )
        for beta in self.betas:
            check_number(beta, "betas", FRACTION, "0.9 averages over some ten values")
        self.m: list[Any] = [0.0] * num_losses
        self.t = [0] * num_losses

    def record_loss(self, losses_indexes: int | Sequence[int], losses: Any) -> list[Any]:
        """See :meth:`LossRecorder.record_loss`.

        Raises:
            ValueError: numbers and values do not match.
        """
        for index, loss in self._pairs(losses_indexes, losses):
            beta = self.betas[index]
            self.t[index] += 1
            self.m[index] = beta * self.m[index] + (1 - beta) * loss
            self.current_losses[index] = self.m[index] / (1 - beta ** self.t[index])
        return list(self.current_losses)

    def state_dict(self) -> dict[str, Any]:
        """See :meth:`LossRecorder.state_dict`."""
        return {**super().state_dict(), "m": list(self.m), "t": list(self.t)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """See :meth:`LossRecorder.load_state_dict`.

        Raises:
            ValueError: the state is of another number of losses.
        """
        check_state(state_dict, self, "m", "t")
        super().load_state_dict(state_dict)
        self.m, self.t = list(state_dict["m"]), list(state_dict["t"])
