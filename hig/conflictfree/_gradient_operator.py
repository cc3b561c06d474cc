"""Gradient operators: from the gradients of several losses to one direction."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from hig.conflictfree._conflict_report import ConflictReport
from hig.conflictfree._coverage import Coverage, check_coverage, note_coverage
from hig.conflictfree._gradient_matrix import Combination, GradientMatrix
from hig.conflictfree._gradients import as_vectors, check_finite
from hig.conflictfree._non_finite import non_finite_direction, require_finite
from hig.conflictfree._parameter_vectors import Parameters, covered_by, overwrite, tensors_of
from hig.conflictfree._validation import check_combined
from hig.errors import NonFiniteError

__all__ = ["GradientOperator", "Gradients", "Operator", "combine", "write_gradient"]

Gradients = Tensor | Sequence[Tensor]


class GradientOperator:
    """Base class of the operators: derived classes define ``calculate_gradient``.

    An operator is a callable from an (m, P) matrix of gradients to a direction (P,), so that it
    can replace a TorchJD aggregator.

    Attributes:
        report: the :class:`ConflictReport` of the last call, None before.
    """

    report: ConflictReport | None = None

    def calculate_gradient(self, grads: Gradients, losses: Sequence[Any] | None = None) -> Tensor:
        """The direction for the given gradients.

        Args:
            grads: (m, P), or a sequence of m vectors (P,).
            losses: the m losses, for weight and length models that use them.

        Returns:
            (P,), dtype and device of the gradients; NaN if one of them holds NaN or Inf.

        Raises:
            NotImplementedError: in this base class.
        """
        raise NotImplementedError(
            f"{type(self).__name__} must define calculate_gradient(grads, losses); or use "
            "ConFIGOperator()"
        )

    def __call__(self, matrix: Gradients, losses: Sequence[Any] | None = None) -> Tensor:
        """See :meth:`calculate_gradient`."""
        return self.calculate_gradient(matrix, losses)

    def update_gradient(
        self, network: Parameters, grads: Gradients, losses: Sequence[Any] | None = None
    ) -> None:
        """Overwrite the ``.grad`` of a network with the direction.

        Args:
            network: a module, an object with a method ``parameters``, or an iterable of tensors.
            grads: (m, P), or a sequence of m vectors (P,), with entries for all parameters or
                only for those that have a gradient.
            losses: see :meth:`calculate_gradient`.

        Raises:
            ValueError: P matches neither number of entries.
        """
        parameters = tensors_of(network)
        direction = self.calculate_gradient(grads, losses)
        # Vectors that skip some parameters are shorter, and note which ones: a matrix does not.
        coverage = None
        if direction.numel() != sum([parameter.numel() for parameter in parameters]):
            coverage = None if isinstance(grads, Tensor) else check_coverage(grads)
        write_gradient(parameters, direction, coverage)

    def state_dict(self) -> dict[str, Any]:
        """Return the state that the next call depends on; empty for most operators."""
        return {}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Resume from the state of another operator of the same class."""

    def combined(
        self, grads: Gradients, rule: Callable[[GradientMatrix], tuple[Combination, float]]
    ) -> Tensor:
        """Apply a rule and set ``report``; NaN if a gradient holds NaN or Inf.

        Args:
            grads: (m, P), or a sequence of m vectors (P,).
            rule: function from the gradients to a combination and the factor to multiply it with.

        Raises:
            TypeError: the gradients are not real floating-point tensors.
            ValueError: they do not form a matrix (m, P).
        """
        with torch.no_grad():
            matrix = self.reduced(grads)
            return matrix if isinstance(matrix, Tensor) else self.scaled(matrix, *rule(matrix))

    def reduced(self, grads: Gradients) -> GradientMatrix | Tensor:
        """Return the gradients as a `GradientMatrix`; or a direction of NaN, if not all finite."""
        if isinstance(grads, Iterator):
            grads = list(grads)
        try:
            return GradientMatrix(grads)
        except NonFiniteError as error:
            self.report = ConflictReport.of_nothing(len(grads))
            return non_finite_direction(as_vectors(grads)[0], error)

    def scaled(self, matrix: GradientMatrix, combination: Combination, factor: float) -> Tensor:
        """Return a multiple of a combination as a vector (P,), and set ``report``.

        Args:
            matrix: the gradients.
            combination: a combination of these gradients.
            factor: the factor to multiply it with.
        """
        self.report = ConflictReport.of(combination, factor, matrix.lengths)
        return matrix.lift(combination, factor)


Operator = GradientOperator | Callable[[Tensor], Tensor]


def combine(
    operator: Operator,
    matrix: Tensor,
    losses: Sequence[Any] | None = None,
    non_finite: str = "raise",
) -> Tensor:
    """Apply an operator, or any callable on an (m, P) matrix, and return its direction (P,).

    Callables such as a TorchJD aggregator are called without losses. With ``non_finite="pass"`` the
    direction is NaN instead of an error.

    Raises:
        NonFiniteError: a gradient holds NaN or Inf.
        TypeError: the operator does not return a tensor.
        ValueError: the tensor has another shape.
    """
    if hasattr(operator, "calculate_gradient"):
        direction = operator.calculate_gradient(matrix, losses)
    else:
        try:
            check_finite(matrix)
            direction = operator(matrix)
        except NonFiniteError as error:
            direction = non_finite_direction(matrix[0], error)
    if non_finite == "raise":
        require_finite(direction)
    check_combined(direction, matrix)
    return direction


def write_gradient(
    parameters: list[Tensor], direction: Tensor, coverage: Coverage | None = None
) -> None:
    """Overwrite ``.grad`` with a direction for all parameters, or for those that have a ``.grad``.

    ``coverage`` has the parameters that the gradients had entries for, if known. Raises a
    ValueError if P matches neither number of entries.
    """
    if direction.numel() != sum([parameter.numel() for parameter in parameters]):
        parameters = covered_by(note_coverage(direction, coverage), parameters)
    overwrite(parameters, direction)
