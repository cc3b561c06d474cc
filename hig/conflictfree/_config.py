"""ConFIG: a direction that conflicts with no loss."""

import math
from collections.abc import Sequence
from operator import mul
from typing import Any, TypeGuard

import torch
from torch import Tensor

from hig.conflictfree._conflict_report import ConflictReport
from hig.conflictfree._gradient_matrix import GradientMatrix
from hig.conflictfree._gradient_operator import GradientOperator, Gradients
from hig.conflictfree._length_models import CosineLength, LengthModel, ProjectionLength
from hig.conflictfree._state_dicts import load_states, states
from hig.conflictfree._validation import check_model
from hig.conflictfree._weight_models import EqualWeight, WeightModel

__all__ = ["ConFIGOperator", "ConFIG_update", "ConFIG_update_double"]


class ConFIGOperator(GradientOperator):
    r"""ConFIG: the direction that has the same positive cosine with every gradient.

    :math:`g = (\sum_i g_i \cdot u)\, u` with :math:`u` along :math:`U^+ 1`, the rows of U being
    the unit gradients (Liu, Chu, Thuerey, ICLR 2025, arXiv 2408.11104, equations 2 and 3). The
    cosines are not guaranteed if the gradients are linearly dependent or outnumber the parameters;
    check ``report.smallest_cosine``. Zero gradients are left out. The direction is zero if all
    gradients are zero, or if the pseudo-inverse finds none, as for two anti-parallel gradients.

    Args:
        weight_model: ratios of the cosines; ``EqualWeight()`` if None.
        length_model: length of the direction; ``ProjectionLength()`` if None.
        allow_simplified_model: changes, for two losses, the length of the vector that a
            user-defined length model receives; the direction does not depend on it.
        use_least_square: False decomposes the matrix itself in every call, instead of only if
            its Gram matrix is too inaccurate; the result is the same.

    Raises:
        TypeError: a model is a class, or not a model.
    """

    def __init__(
        self,
        weight_model: WeightModel | None = None,
        length_model: LengthModel | None = None,
        allow_simplified_model: bool = True,
        use_least_square: bool = True,
    ):
        self.weight_model = EqualWeight() if weight_model is None else weight_model
        self.length_model = ProjectionLength() if length_model is None else length_model
        check_model(self.weight_model, "weight_model", "get_weights", "EqualWeight()")
        check_model(self.length_model, "length_model", "rescale_length", "ProjectionLength()")
        self.allow_simplified_model = allow_simplified_model
        self.use_least_square = use_least_square

    def calculate_gradient(self, grads: Gradients, losses: Sequence[Any] | None = None) -> Tensor:
        """See :meth:`GradientOperator.calculate_gradient`.

        Raises:
            ValueError: the gradients do not form a matrix (m, P), or the weight model does not
                give m weights.
        """
        with torch.no_grad():
            matrix = self.reduced(grads)
            if isinstance(matrix, Tensor):
                return matrix
            weights = self._weights(matrix, losses)
            combination = matrix.pseudo_inverse(weights, exact=not self.use_least_square)
            model = self.length_model
            if not combination.norm:
                return self.scaled(matrix, combination, 0.0)
            # The default model is a sum of m products; its method takes m tensor operations.
            if type(model) is ProjectionLength and not vars(model):
                length = sum(map(mul, matrix.lengths, combination.products)) / combination.norm
                return self.scaled(matrix, combination, length / combination.norm)
            if _needs_no_vector(model):
                length = float(model.length(matrix.norms, combination.cosines))
                return self.scaled(matrix, combination, length / combination.norm)
            scale = self._target_scale(matrix, weights)
            target = matrix.lift(combination, scale)
            direction = model.rescale_length(
                target_vector=target, gradients=matrix.rows, losses=losses
            )
            along = float(direction.double() @ target.double())
            factor = along / (scale * combination.norm**2)
            self.report = ConflictReport.of(combination, factor, matrix.lengths)
            return direction

    def _weights(
        self, matrix: GradientMatrix, losses: Sequence[Any] | None
    ) -> Tensor | list[float]:
        """Weights of the losses, (m,) or m numbers."""
        model = self.weight_model
        if type(model) is EqualWeight and not vars(model):
            return [1.0] * len(matrix.lengths)  # which takes no matrix of all gradients
        rows = matrix.rows
        weights = model.get_weights(gradients=rows, losses=losses, device=rows.device)
        return torch.as_tensor(weights, device=rows.device)

    def _target_scale(self, matrix: GradientMatrix, weights: Tensor | list[float]) -> float:
        """Length of the vector that length models receive, relative to that of U⁺w.

        For two losses ``conflictfree`` adds components that are orthogonal to a gradient, the
        first with a factor of one, unless ``allow_simplified_model`` is False.
        """
        first = abs(float(weights[0]))
        if len(matrix.lengths) != 2 or not self.allow_simplified_model or not first:
            return 1.0
        sine = math.sqrt(max(0.0, 1.0 - matrix.angles[0][1] ** 2))
        return sine / first if sine > matrix.rcond else 1.0

    def state_dict(self) -> dict[str, Any]:
        """Return the states of weight and length model, if these have one."""
        return states(weight_model=self.weight_model, length_model=self.length_model)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Resume from the state of another operator.

        Raises:
            ValueError: its weight or length model had a state, and this one's has none.
        """
        load_states(state_dict, weight_model=self.weight_model, length_model=self.length_model)


def ConFIG_update(
    grads: Gradients,
    weight_model: WeightModel | None = None,
    length_model: LengthModel | None = None,
    use_least_square: bool = True,
    losses: Sequence[Any] | None = None,
) -> Tensor:
    """Return the direction of :class:`ConFIGOperator`.

    Args:
        grads: (m, P), or a sequence of m vectors (P,).
        weight_model: see :class:`ConFIGOperator`.
        length_model: see :class:`ConFIGOperator`.
        use_least_square: see :class:`ConFIGOperator`.
        losses: see :meth:`GradientOperator.calculate_gradient`.

    Returns:
        (P,), dtype and device of the gradients; NaN where one of them holds NaN or Inf.

    Raises:
        ValueError: the gradients do not form a matrix (m, P).
    """
    operator = ConFIGOperator(weight_model, length_model, use_least_square=use_least_square)
    return operator.calculate_gradient(grads, losses)


def ConFIG_update_double(
    grad_1: Tensor,
    grad_2: Tensor,
    weight_model: WeightModel | None = None,
    length_model: LengthModel | None = None,
    losses: Sequence[Any] | None = None,
) -> Tensor:
    """Return the direction of :class:`ConFIGOperator` for two losses.

    Args:
        grad_1: (P,).
        grad_2: (P,).
        weight_model: see :class:`ConFIGOperator`.
        length_model: see :class:`ConFIGOperator`.
        losses: see :meth:`GradientOperator.calculate_gradient`.

    Returns:
        (P,), dtype and device of the gradients; NaN where one of them holds NaN or Inf.

    Raises:
        ValueError: the gradients are not two vectors (P,).
    """
    return ConFIGOperator(weight_model, length_model).calculate_gradient([grad_1, grad_2], losses)


def _needs_no_vector(model: LengthModel) -> TypeGuard[CosineLength]:
    """Return whether ``length`` defines the model: no method on vectors overrides it."""
    return (
        isinstance(model, CosineLength)
        and model.depends_on_length()
        and not {"get_length", "rescale_length"} & set(vars(model))
        and type(model).rescale_length is LengthModel.rescale_length
    )
