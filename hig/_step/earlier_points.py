"""Parameters of earlier steps, for step rules that judge a step on the samples of later ones."""

from collections.abc import Callable, Sequence
from enum import StrEnum
from typing import Any

import torch
from torch import Tensor

from hig._step.linearisation import Linearisation
from hig._torch.autograd_graph import real_view

__all__ = ["EarlierPoints", "Point", "values_at", "were_set"]


# A change by this part of the parameters may be that of a weight decay at the end of training.
_SMALL = 0.01


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


def were_set(state: dict[Any, Any], parameters: Sequence[Tensor]) -> bool:
    """Return whether others than the optimiser have moved the parameters since its last step.

    By more than that step, and than a hundredth of their own length: projecting on bounds,
    averaging or decaying them after each step moves them less, and is part of the training. False
    if the last step is not known.

    Args:
        state: state of the optimizer.
        parameters: the parameters of the step.
    """
    start, length = values_at(Point.LAST, state, parameters), state["points"].get("length")
    if start is None or length is None:
        return False
    distance = _distance(parameters, start)
    return distance > 2 * float(length) and distance > _SMALL * _length(_joined(start))


class EarlierPoints:
    """Earlier values of the parameters, in the state of an optimiser; only ``commit`` changes them.

    Args:
        state: state of the optimizer, by parameter; in ``state["points"]`` the length of the last
            step.
        parameters: the parameters of the step.
        linearisation: the Jacobian at their present values.
        last_change: finds the change of all outputs by the last step, if the Jacobian is of a
            sketch of them.
    """

    def __init__(
        self,
        state: dict[Any, Any],
        parameters: Sequence[Tensor],
        linearisation: Linearisation,
        last_change: Callable[[Sequence[Tensor]], Tensor | None] | None = None,
    ):
        self._state, self._parameters = state, parameters
        self._linearisation, self._last_change = linearisation, last_change
        self._safe: Sequence[Tensor] | None = None
        self._forgotten = False

    def values(self, point: Point) -> list[Tensor] | None:
        """Return the values at a point; None if it is not known for all parameters."""
        return None if self._forgotten else values_at(point, self._state, self._parameters)

    def were_set(self) -> bool:
        """See :func:`were_set`."""
        return were_set(self._state, self._parameters)

    def forget(self) -> None:
        """Forget all points, those of other parameters than the present ones."""
        self._forgotten = True

    @torch.no_grad()
    def last_step(self) -> tuple[float, float] | None:
        """Return slope and curvature of the loss of this batch along the last step, at its end.

        Both for the whole step as the unit of length; None if it is not known.
        """
        start = self.values(Point.LAST)
        if start is None:
            return None
        if self._last_change is not None:
            change = self._last_change(start)
            if change is None:
                return None
            slope, curvature = self._linearisation.along(change)
            return slope, abs(curvature)
        step = [
            real_view(parameter).double() - value.double()
            for parameter, value in zip(self._parameters, start, strict=True)
        ]
        model = self._linearisation.model(self._linearisation.output_change(step))
        return model.slope, abs(model.curvature)

    def keep_safe(self, values: Sequence[Tensor]) -> None:
        """Make values the safe point; they must not be changed later."""
        self._safe = values

    def commit(self, start: Sequence[Tensor], returned: bool = False) -> None:
        """Remember the points of a step that has been taken.

        Args:
            start: values before it, which must not be changed later.
            returned: whether the step went back to the safe point; it has no length then.
        """
        if returned and (safe := self.values(Point.SAFE)) is not None:
            start = safe
        length = _distance(self._parameters, start)  # before anything is changed: may raise
        self._forget_others()
        self._store(Point.LAST, start)
        self._state["points"]["length"] = length
        if self._safe is not None:
            self._store(Point.SAFE, self._safe)

    def _forget_others(self) -> None:
        """Drop the points of frozen parameters: those of others will be of later steps."""
        present = set(map(id, self._parameters))
        for parameter, values in self._state.items():
            if isinstance(parameter, Tensor) and id(parameter) not in present:
                for point in Point:
                    values.pop(point.value, None)

    def _store(self, point: Point, values: Sequence[Tensor]) -> None:
        for parameter, value in zip(self._parameters, values, strict=True):
            self._state.setdefault(parameter, {})[point.value] = value


def _joined(values: Sequence[Tensor]) -> Tensor:
    return torch.cat([real_view(value).flatten() for value in values])


def _length(vector: Tensor) -> float:
    return float(torch.linalg.vector_norm(vector, dtype=torch.float64))


def _distance(parameters: Sequence[Tensor], values: Sequence[Tensor]) -> float:
    return _length(_joined(parameters) - _joined(values))
