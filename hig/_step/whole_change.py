"""Change of all outputs of a closure along a direction, where the rows are those of a sketch."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from hig._step.evaluation import Evaluation
from hig._step.linearisation import Linearisation, QuadraticModel
from hig._step.objective import Objective

__all__ = ["WholeChange"]

# Length of the step that shows the change, in Cauchy steps; and its least length, in roundings of
# the parameters and of the outputs.
_SHARE, _OF_PARAMETERS, _OF_OUTPUTS = 1 / 32, 1e3, 1e2
# With one direction the last step is looked at in the first steps, and in every third after them.
_EARLY, _STEPS_BETWEEN = 16, 3


class WholeChange:
    """Finds the change of all outputs by one evaluation of the closure.

    Args:
        linearisation: the Jacobian, of the rows of a sketch.
        parameters: the parameters, at the start of the step.
        evaluate: evaluates the closure of the step.
        state: its memory, plain numbers.
    """

    def __init__(
        self,
        linearisation: Linearisation,
        parameters: Sequence[Tensor],
        evaluate: Evaluation,
        state: dict[str, Any],
    ):
        self._linearisation, self._parameters = linearisation, parameters
        self._evaluate, self._state = evaluate, state
        # Cauchy step by all outputs over that by the rows of the sketch, in the last step.
        self._state.setdefault("ratio", 1.0)

    @torch.no_grad()
    def model(self, directions: Sequence[Tensor], output_change: Tensor) -> QuadraticModel:
        """Return the quadratic model along directions, with the curvature of all outputs.

        Args:
            directions: one per parameter.
            output_change: of the rows, (n,).
        """
        seen = self._linearisation.model(output_change)
        length = self._length(directions, output_change, seen)
        if not length > 0:
            return seen
        start = [parameter.detach().clone() for parameter in self._parameters]
        moved = [p - length * d for p, d in zip(start, directions, strict=True)]
        change = self._change(start, moved) / length
        whole = self._linearisation.model(output_change, change)
        if whole.curvature > 0 and seen.curvature > 0:
            self._state["ratio"] = min(seen.curvature / whole.curvature, 1.0)
        return whole

    @torch.no_grad()
    def of_last_step(self, output_change: Tensor, start: Sequence[Tensor]) -> Tensor | None:
        """Return the change by the last step of the outputs of this process, (B * D,) float64.

        The directions were drawn after that step, and two or more stand for all outputs; one does
        not, and the closure is evaluated at the start of the step.

        Args:
            output_change: of the rows, (n,).
            start: the parameters before it.

        Returns:
            None in those steps in which one direction alone is not worth an evaluation.
        """
        objective = self._linearisation.objective
        fewer = objective.fewer_rows
        if fewer is not None and fewer.rows > 1:
            return objective.local_change(output_change, spread=True)
        steps = self._state["steps"]
        if steps > _EARLY and steps % _STEPS_BETWEEN:
            return None
        present = [parameter.detach().clone() for parameter in self._parameters]
        return self._change(present, start)

    def _change(self, start: Sequence[Tensor], there: Sequence[Tensor]) -> Tensor:
        """Return the outputs at the start less those at another point, (B * D,) float64."""
        present = self._linearisation.objective.closure_prediction.detach().double()
        try:
            _set(self._parameters, there)
            (prediction,) = self._evaluate.predictions()
        finally:
            _set(self._parameters, start)
        return (present - prediction.double()).flatten()

    def _length(
        self, directions: Sequence[Tensor], output_change: Tensor, seen: QuadraticModel
    ) -> float:
        """Return the step size at which to look."""
        objective: Objective = self._linearisation.objective
        if not output_change.any():
            return 0.0
        cauchy = abs(seen.slope / seen.curvature) if seen.curvature > 0 else 1.0
        parameters = torch.cat([p.detach().double().flatten() for p in self._parameters]).norm()
        direction = torch.cat([d.flatten() for d in directions]).norm()
        squares = objective.closure_prediction.detach().double().square().sum()
        if objective.split is not None:
            squares = objective.split.ranks.total(squares)
        eps_of_parameters = max(torch.finfo(p.dtype).eps for p in self._parameters)
        least = _OF_PARAMETERS * eps_of_parameters * float(parameters / direction)
        visible = torch.finfo(objective.closure_prediction.dtype).eps * squares.sqrt()
        least = max(least, _OF_OUTPUTS * float(visible) / seen.squared_length**0.5)
        return max(_SHARE * self._state["ratio"] * cauchy, least)


def _set(parameters: Sequence[Tensor], values: Sequence[Tensor]) -> None:
    for parameter, value in zip(parameters, values, strict=True):
        parameter.copy_(value)
