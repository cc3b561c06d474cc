"""Change of all outputs of a closure by the last step, where the rows are those of a sketch."""

from collections.abc import Sequence

import torch
from torch import Tensor

from hig._step.evaluation import Evaluation
from hig._step.objective import Objective
from hig._step.sketch import Sketch
from hig._step.trial_step import restore_parameters

__all__ = ["LastChange"]

# The last step is looked at in the first steps, and in every third after them.
_EARLY, _STEPS_BETWEEN = 16, 3


class LastChange:
    """Finds the change of all outputs by the last step.

    Args:
        objective: that of this step, with the rows of a sketch.
        parameters: the parameters, at the start of the step.
        evaluate: evaluates the closure of the step.
        sketch: whose directions these are.
    """

    def __init__(
        self,
        objective: Objective,
        parameters: Sequence[Tensor],
        evaluate: Evaluation,
        sketch: Sketch,
    ):
        self._objective, self._parameters = objective, parameters
        self._evaluate, self._sketch = evaluate, sketch

    @torch.no_grad()
    def __call__(self, start: Sequence[Tensor]) -> Tensor | None:
        """Return the change of the outputs of this process, (B * D,) float64, by an evaluation.

        Args:
            start: the parameters before the last step.

        Returns:
            None in those steps in which that is not worth an evaluation.
        """
        steps = self._sketch.state["steps"]
        if steps > _EARLY and steps % _STEPS_BETWEEN:
            return None
        present = [parameter.detach().clone() for parameter in self._parameters]
        outputs = self._objective.closure_prediction.detach().double()
        try:
            restore_parameters(self._parameters, start)
            (prediction,) = self._evaluate.predictions()
        finally:
            restore_parameters(self._parameters, present)
        return (outputs - prediction.double()).flatten()
