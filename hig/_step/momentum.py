r"""What a direction keeps of the one before it.

.. math::
    d_k = V \varphi(S) U^T g + \mu (1 - P) d_{k-1}

"plain" momentum is that of the heavy ball, :math:`P = 0`. "projected" is that of SPRING
(Goldshlager, Abrahamsen, Lin, J. Comput. Phys. 2024, arXiv 2401.10190): the present Jacobian
decides on all that it sees, and the past counts where it is blind. With :math:`P = V \pi(S) U^T J`
both kinds of filters have one formula,

- truncated: :math:`\pi(s) = 1 / s`, so that :math:`P = V_r V_r^T` for the kept singular vectors;
- damped: :math:`\pi = \varphi`, so that :math:`P = J^T (J J^T + \lambda)^{-1} J` and
  :math:`d_k = \mu d_{k-1} + J^T (J J^T + \lambda)^{-1} (g - \mu J d_{k-1})`, the step of SPRING;

and P is applied by a product with J and another use of the decomposition.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from hig._spectral.filters import Damped, HalfInverse, SpectralFilter
from hig._step.linearisation import Linearisation
from hig.arguments import FRACTION, MOMENTUM_KINDS, check_choice, check_number

__all__ = ["Momentum", "PreviousDirection"]


@dataclass(frozen=True)
class Momentum:
    r"""How much of the last direction the next one keeps, and which part.

    Args:
        factor: :math:`\mu` in [0, 1).
        kind: "plain" or "projected".

    Raises:
        TypeError: if ``factor`` is no number.
        ValueError: if it lies outside its range, or the kind is unknown.
    """

    factor: float
    kind: str

    def __post_init__(self) -> None:
        check_number(self.factor, "momentum", FRACTION, "0.9 keeps much, 0 nothing")
        check_choice(self.kind, "momentum_kind", MOMENTUM_KINDS)

    def step(
        self,
        linearisation: Linearisation,
        filter: SpectralFilter,
        last: Sequence[Tensor],
        measures: bool,
    ) -> tuple[list[Tensor], Tensor]:
        """One direction per parameter, float64, and the change of the outputs (n,).

        Args:
            linearisation: the Jacobian and its decomposition.
            filter: the filter of the step.
            last: the last direction of each parameter, in its shape.
            measures: whether the change is asked for; what it is otherwise does not matter.
        """
        carried = [self.factor * direction.double() for direction in last]
        projected = self.kind == "projected"
        if projected or measures:
            with linearisation.clock.phase("momentum"):
                moved = linearisation.output_change(carried)
        if projected:
            found, change = _orthogonal_component(linearisation, filter, moved)
        else:
            found, change = linearisation.step(filter)
        directions = [own + part for own, part in zip(found, carried, strict=True)]
        return directions, change + moved if projected or measures else change


def _orthogonal_component(
    linearisation: Linearisation, filter: SpectralFilter, moved: Tensor
) -> tuple[list[Tensor], Tensor]:
    """The step of a filter less what the Jacobian sees of a direction that causes ``moved``."""
    seeing = _projection_filter(filter)
    if seeing == filter:
        return linearisation.step(filter, linearisation.objective.flat_gradient - moved)
    seen, seen_change = linearisation.step(seeing, moved)
    # Last: what was found for the gradient is what the report of a Lanczos step tells.
    directions, change = linearisation.step(filter)
    return [own - part for own, part in zip(directions, seen, strict=True)], change - seen_change


def _projection_filter(filter: SpectralFilter) -> SpectralFilter:
    """The filter that makes a projector of J, as above."""
    if isinstance(filter, Damped):
        return filter
    return HalfInverse(-1.0, "auto" if getattr(filter, "auto", False) else filter.rcond)


class PreviousDirection:
    """The last direction, through the attempts of one step; only ``keep`` changes the memory.

    Args:
        momentum: how much of it counts.
        state: that of the optimizer, by parameter.
        parameters: the parameters of the step.

    Attributes:
        used: whether the newest direction contains something of the last.
    """

    def __init__(self, momentum: Momentum, state: dict[Any, Any], parameters: Sequence[Tensor]):
        self._momentum, self._state, self._parameters = momentum, state, parameters
        self._last = _remembered(state, parameters)
        self._newest: list[Tensor] = []
        self.used = False

    def step(
        self, linearisation: Linearisation, filter: SpectralFilter, measures: bool
    ) -> tuple[list[Tensor], Tensor]:
        """As :meth:`Momentum.step`; from the second time on without the last direction.

        Whoever asks again has taken the step back, and what it carried may be why.
        """
        self.used, last, self._last = bool(self._last), self._last, []
        if self.used:
            directions, change = self._momentum.step(linearisation, filter, last, measures)
        else:
            directions, change = linearisation.step(filter)
        # In the dtype of the parameters, to which a loaded state is cast.
        pairs = zip(directions, self._parameters, strict=True)
        self._newest = [direction.to(parameter.dtype) for direction, parameter in pairs]
        return directions, change

    def keep(self, step_size: float | None) -> None:
        """Remember the newest direction; nothing where no step was taken along it."""
        for parameter, direction in zip(self._parameters, self._newest, strict=True):
            if step_size is not None and step_size > 0:
                self._state[parameter] = {"direction": direction}
            else:
                self._state.pop(parameter, None)


def _remembered(state: dict[Any, Any], parameters: Sequence[Tensor]) -> list[Tensor]:
    """The last direction of each parameter, zero for new ones; empty where there is none."""
    found = [state.get(parameter, {}).get("direction") for parameter in parameters]
    if all(direction is None for direction in found):
        return []
    pairs = zip(found, parameters, strict=True)
    return [torch.zeros_like(p) if direction is None else direction for direction, p in pairs]
