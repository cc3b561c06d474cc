"""Momentum operators: stateful, so that a step may differentiate only some of the losses."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from hig.arguments import FRACTION, check_count, check_number
from hig.conflictfree._config import ConFIGOperator
from hig.conflictfree._conflict_report import ConflictReport
from hig.conflictfree._coverage import Coverage, check_coverage
from hig.conflictfree._gradient_operator import Operator, write_gradient
from hig.conflictfree._gradients import as_vectors, check_finite
from hig.conflictfree._loss_recorders import LossRecorder, as_list
from hig.conflictfree._non_finite import non_finite_direction
from hig.conflictfree._parameter_vectors import Parameters, tensors_of
from hig.conflictfree._state_dicts import load_states, states
from hig.conflictfree._validation import check_index, check_model, check_operator, check_state
from hig.errors import NonFiniteError

__all__ = ["EPSILON", "MomentumOperator", "averaged", "column", "copied", "zero_moment"]

# Added to square roots of second moments, as in Adam.
EPSILON = 1e-8


class MomentumOperator:
    """Base class of operators with a memory: derived classes define ``calculate_gradient``.

    Args:
        num_vectors: number of losses.
        beta_1: decay of first moments, in [0, 1).
        beta_2: decay of second moments, in [0, 1).
        gradient_operator: combines the moments of all losses: an operator, or any callable on an
            (m, P) matrix such as a TorchJD aggregator; ``ConFIGOperator()`` if None.
        loss_recorder: provides the values of all losses, if ``gradient_operator`` uses them.

    The memory is in attributes that may be read, saved and set, as ``state_dict`` does.

    Attributes:
        m: first moments, a list of m vectors (P,); None before the first call.
        s: second moments; None before the first call.
        t_grads: number of gradients of each loss so far.
        all_initialized: whether every loss has had a gradient; directions are zero before.
        len_vectors: P; None before the first call.
        device: device of the gradients; None before the first call.

    Raises:
        TypeError: ``num_vectors`` is not an integer, a beta is not a number, or a part is a class
            or not an operator or recorder.
        ValueError: a number is out of its range.
    """

    def __init__(
        self,
        num_vectors: int,
        beta_1: float = 0.9,
        beta_2: float = 0.999,
        gradient_operator: Operator | None = None,
        loss_recorder: LossRecorder | None = None,
    ):
        num_vectors = check_count(num_vectors, "num_vectors", "give the number of losses")
        for name, beta in (("beta_1", beta_1), ("beta_2", beta_2)):
            check_number(beta, name, FRACTION, "0.9 and 0.999 are Adam's")
        self.num_vectors = num_vectors
        self.beta_1, self.beta_2 = beta_1, beta_2
        gradient_operator = ConFIGOperator() if gradient_operator is None else gradient_operator
        check_operator(gradient_operator, "gradient_operator")
        self.gradient_operator = gradient_operator
        if loss_recorder is not None:
            example = f"LatestLossRecorder({num_vectors})"
            check_model(loss_recorder, "loss_recorder", "record_loss", example)
        self.loss_recorder = loss_recorder
        self.m: list[Tensor] | None = None
        self.s: Any = None
        self.t_grads = [0] * num_vectors
        self.all_initialized = False
        self.len_vectors: int | None = None
        self.device: torch.device | None = None
        self._coverage: Coverage | None = None

    @property
    def report(self) -> ConflictReport | None:
        """Report of ``gradient_operator`` on the moments it combined last."""
        return getattr(self.gradient_operator, "report", None)

    def calculate_gradient(
        self, indexes: int | Sequence[int], grads: Tensor | Sequence[Tensor], losses: Any = None
    ) -> Tensor:
        """Compute the direction from the gradients of some losses and the memory of the others.

        Args:
            indexes: numbers of these losses, or one number.
            grads: their gradients: (P,), (k, P), or a sequence of k vectors (P,).
            losses: their values, for the loss recorder.

        Returns:
            (P,), dtype and device of the gradients; zero until every loss has had a gradient, NaN
            if a gradient holds NaN or Inf.

        Raises:
            NotImplementedError: in this base class.
        """
        raise NotImplementedError(
            f"{type(self).__name__} must define calculate_gradient(indexes, grads, losses); or "
            "use PseudoMomentumOperator(num_vectors)"
        )

    def calculate_step(
        self, indexes: Sequence[int], grads: Tensor, losses: Sequence[Any]
    ) -> Tensor:
        """Call :meth:`calculate_gradient`, without the losses if there is no loss recorder.

        Args:
            indexes: k numbers of losses.
            grads: (k, P).
            losses: k values.
        """
        kept = None if self.loss_recorder is None else losses
        return self.calculate_gradient(indexes, grads, kept)

    def update_gradient(
        self,
        network: Parameters,
        indexes: int | Sequence[int],
        grads: Tensor | Sequence[Tensor],
        losses: Any = None,
    ) -> None:
        """Overwrite the ``.grad`` of a network with the direction.

        Args:
            network: a module, an object with a method ``parameters``, or an iterable of tensors.
            indexes: see :meth:`calculate_gradient`.
            grads: see :meth:`calculate_gradient`; with entries for all parameters or only for
                those that have a gradient.
            losses: see :meth:`calculate_gradient`.

        Raises:
            ValueError: P matches neither number of entries.
        """
        parameters = tensors_of(network)
        direction = self.calculate_gradient(indexes, grads, losses)
        write_gradient(parameters, direction, self._coverage)

    def state_dict(self) -> dict[str, Any]:
        """Return moments, counters and the states of operator and recorder, for an exact resume."""
        memory = {"m": stacked(self.m), "s": stacked(self.s), "t_grads": list(self.t_grads)}
        return memory | states(
            gradient_operator=self.gradient_operator, loss_recorder=self.loss_recorder
        )

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Resume from the state of another operator.

        Raises:
            ValueError: the state is of another number of losses, or of other parts.
        """
        check_state(state_dict, self, "m", "s", "t_grads")
        count = len(state_dict["t_grads"])
        if count != self.num_vectors:
            raise ValueError(f"the state is of {count} losses, the operator of {self.num_vectors}")
        load_states(
            state_dict, gradient_operator=self.gradient_operator, loss_recorder=self.loss_recorder
        )
        moments = copied(state_dict["m"])
        self.m = None if moments is None else list(moments)
        self.s = copied(state_dict["s"])
        self.t_grads = list(state_dict["t_grads"])
        self.all_initialized = all(self.t_grads)
        self.len_vectors = None if moments is None else moments.shape[1]
        self.device = None if moments is None else moments.device
        self._coverage = None

    # -- shared by the derived classes -------------------------------------------------------------

    def _preprocess_gradients_losses(
        self, indexes: int | Sequence[int], grads: Tensor | Sequence[Tensor], losses: Any = None
    ) -> tuple[list[int], list[Tensor], list[Any] | None]:
        """Check the arguments, and return loss numbers, gradients (P,) and values of all losses.

        User-defined operators call it first: it raises before anything has changed.

        Raises:
            TypeError: a loss number is not an integer, or a gradient is not a real floating-point
                tensor.
            ValueError: numbers and gradients do not match one another or those of earlier calls;
                or there are losses but no recorder.
        """
        indexes = [check_index(index, self.num_vectors) for index in as_list(indexes)]
        rows = _rows(grads)
        size = self.len_vectors
        if size is None and isinstance(self.m, list | Tensor) and len(self.m):
            size = len(self.m[0])  # the moments were set by the user
        shape = (len(rows), rows[0].numel())
        expected = (len(indexes), shape[1] if size is None else size)
        if shape != expected:
            raise ValueError(
                f"expected gradients of shape {expected} for losses {indexes}, got {shape}; "
                "where only some losses reach a parameter, use "
                "get_gradient_vector(..., none_grad_mode='zero')"
            )
        coverage = self._same_coverage(grads)
        if losses is not None:
            if self.loss_recorder is None:
                raise ValueError(
                    "losses were given, and there is no loss recorder to complete them; construct "
                    "the operator with loss_recorder=LatestLossRecorder(num_losses)"
                )
            losses = self.loss_recorder.record_loss(indexes, as_list(losses))
        self._coverage = coverage
        self.len_vectors, self.device = shape[1], rows[0].device
        self._create_moments(rows[0])
        return indexes, rows, losses

    def _create_moments(self, like: Tensor) -> None:
        """Create the moments of gradients (P,) if there are none; derived classes define it."""

    def _zero_moments(self, like: Tensor) -> list[Tensor]:
        """Return a zero moment (P,) for each loss."""
        return [zero_moment(like) for _ in range(self.num_vectors)]

    def _same_coverage(self, grads: Tensor | Sequence[Tensor]) -> Coverage | None:
        """Return the parameters that the gradients cover; raise if earlier ones cover others."""
        vectors = [grads] if isinstance(grads, Tensor) else list(grads)
        return check_coverage(vectors, self._coverage) or self._coverage

    def non_finite(
        self, indexes: int | Sequence[int], grads: Tensor | Sequence[Tensor]
    ) -> Tensor | None:
        """Return a direction of NaN if a gradient holds NaN or Inf, before it enters the memory.

        Args:
            indexes: see :meth:`calculate_gradient`.
            grads: see :meth:`calculate_gradient`.

        Returns:
            (P,), or None if all gradients are finite.
        """
        rows = _rows(grads)
        numbers = as_list(indexes)
        try:
            check_finite(rows, numbers if len(numbers) == len(rows) else None)
        except NonFiniteError as error:
            return non_finite_direction(rows[0], error)
        return None

    def remember(self, indexes: Sequence[int], rows: Sequence[Tensor]) -> None:
        """Update the first moments with the gradients of some losses."""
        if self.m is None:
            self.m = self._zero_moments(rows[0])
        for index, row in zip(indexes, rows, strict=True):
            self.t_grads[index] += 1
            self.m[index] = averaged(self.m[index], row, self.beta_1)
        # The user may have set `t_grads`, or `all_initialized` alone.
        self.all_initialized = self.all_initialized or all(self.t_grads)

    def first_moments(self) -> Tensor:
        """Bias-corrected first moments, (m, P); requires that there are moments."""
        assert self.m is not None
        moments = torch.stack(list(self.m))
        return moments.div_(column([1 - self.beta_1**t for t in self.t_grads], moments))


def zero_moment(like: Tensor) -> Tensor:
    """Zero moment in float32 or wider, so that small squares do not underflow."""
    return torch.zeros_like(like, dtype=torch.promote_types(like.dtype, torch.float32))


def averaged(moment: Tensor, value: Tensor, beta: float) -> Tensor:
    """Moving average after one more value, (P,), in new memory: the user may keep the old one."""
    value = value.to(moment.dtype)
    return (moment * beta).add_(value, alpha=1 - beta)


def column(values: list[float], like: Tensor) -> Tensor:
    """Column (m, 1) of numbers, dtype and device of another tensor."""
    return torch.tensor(values, dtype=like.dtype, device=like.device).unsqueeze(1)


def copied(tensor: Tensor | None) -> Tensor | None:
    """Copy a tensor, so that a saved state does not change with the operator."""
    return None if tensor is None else tensor.clone()


def stacked(moments: Any) -> Tensor | None:
    """Copy moments to one tensor: a vector (P,), or m vectors as (m, P)."""
    if moments is None or isinstance(moments, Tensor):
        return copied(moments)
    return torch.stack(list(moments))


def _rows(grads: Tensor | Sequence[Tensor]) -> list[Tensor]:
    """Return gradients as k vectors (P,)."""
    if isinstance(grads, Tensor) and grads.ndim == 1:
        grads = [grads]
    vectors = as_vectors(grads)
    return list(vectors.unbind()) if isinstance(vectors, Tensor) else vectors
