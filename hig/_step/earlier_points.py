"""Parameters of earlier steps, for step rules that judge a step on the samples of later ones."""

from collections.abc import Sequence
from enum import StrEnum
from typing import Any

import torch
from torch import Tensor

from hig._step.linearisation import Linearisation

__all__ = ["EarlierPoints", "Point", "values_at"]


class Point(StrEnum):
    """A point that is kept, by its key in the state of a parameter."""

    #: Before the last step.
    LAST = "last_point"
    #: The best one so far on the samples of later steps.
    SAFE = "safe_point"


def values_at(
    point: Point, state: dict[Any, Any], parameters: Sequence[Tensor]
) -> list[Tensor] | None:
    """Return the values at a point in the state of an optimiser; None unless all are known."""
    values = [state.get(parameter, {}).get(point.value) for parameter in parameters]
    return None if any(value is None for value in values) else values


class EarlierPoints:
    """Earlier values of the parameters, in the state of an optimiser; only ``commit`` changes them.

    Args:
        state: state of the optimizer, by parameter.
        parameters: the parameters of the step.
        linearisation: the Jacobian at their present values.
    """

    def __init__(
        self, state: dict[Any, Any], parameters: Sequence[Tensor], linearisation: Linearisation
    ):
        self._state, self._parameters = state, parameters
        self._linearisation = linearisation
        self._safe: Sequence[Tensor] | None = None

    def values(self, point: Point) -> list[Tensor] | None:
        """Return the values at a point; None if it is not known for all parameters."""
        return values_at(point, self._state, self._parameters)

    @torch.no_grad()
    def last_step(self) -> tuple[float, float] | None:
        """Return slope and curvature of the loss of this batch along the last step, at its end.

        Both for the whole step as the unit of length; None if it is not known.
        """
        start = self.values(Point.LAST)
        if start is None:
            return None
        step = [
            parameter.detach().double() - value.double()
            for parameter, value in zip(self._parameters, start, strict=True)
        ]
        model = self._linearisation.model(self._linearisation.output_change(step))
        return model.slope, abs(model.curvature)

    def keep_safe(self, values: Sequence[Tensor]) -> None:
        """Make values the safe point; they must not be changed later."""
        self._safe = values

    def commit(self, start: Sequence[Tensor] | None) -> None:
        """Remember the points of a step.

        Args:
            start: values before it, which must not be changed later; None if there was no step.
        """
        self._forget_others()
        self._store(Point.LAST, start)
        if self._safe is not None:
            self._store(Point.SAFE, self._safe)

    def _forget_others(self) -> None:
        """Drop the points of frozen parameters: those of others will be of later steps."""
        present = set(map(id, self._parameters))
        for parameter, values in self._state.items():
            if isinstance(parameter, Tensor) and id(parameter) not in present:
                for point in Point:
                    values.pop(point.value, None)

    def _store(self, point: Point, values: Sequence[Tensor] | None) -> None:
        for index, parameter in enumerate(self._parameters):
            if values is not None:
                self._state.setdefault(parameter, {})[point.value] = values[index]
            elif parameter in self._state:
                self._state[parameter].pop(point.value, None)
