r"""Momentum: heavy-ball and projected (SPRING).

.. math::
    d_k = V \varphi(S) U^T g + \mu (1 - P) d_{k-1}

"plain" momentum is that of the heavy ball, :math:`P = 0`. "projected" is that of SPRING
(Goldshlager, Abrahamsen, Lin, J. Comput. Phys. 2024, arXiv 2401.10190): only the part of the
previous direction that the present Jacobian maps to zero is kept. With
:math:`P = V \pi(S) U^T J` truncated and damped filters have one formula,

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
from hig._torch.autograd_graph import real_view
from hig.arguments import FRACTION, MOMENTUM_KINDS, check_choice, check_number

__all__ = ["Momentum", "PreviousDirection"]


# Steps after which the memory of sketched steps, 1 / (1 - momentum), is one step longer.
_STEPS_PER_MEMORY = 10


@dataclass(frozen=True)
class Momentum:
    r"""Momentum coefficient, and the part of the previous direction it applies to.

    Args:
        factor: :math:`\mu` in [0, 1).
        kind: "plain" or "projected".

    Raises:
        TypeError: if ``factor`` is not a number.
        ValueError: if it lies outside its range, or the kind is unknown.
    """

    factor: float
    kind: str

    def __post_init__(self) -> None:
        check_number(self.factor, "momentum", FRACTION, "0.9 keeps much, 0 nothing")
        check_choice(self.kind, "momentum_kind", MOMENTUM_KINDS)

    def after(self, steps: int) -> "Momentum":
        """Return the momentum with a memory no longer than a tenth of the steps so far, and one.

        The first directions lead far from where the network stays, and are better forgotten.
        """
        return Momentum(min(self.factor, (steps - 1) / (steps - 1 + _STEPS_PER_MEMORY)), self.kind)

    def step(
        self,
        linearisation: Linearisation,
        filter: SpectralFilter,
        last: Sequence[Tensor],
        measures: bool,
    ) -> tuple[list[Tensor], Tensor]:
        """Return one direction per parameter, float64, and the change of the outputs (n,).

        Args:
            linearisation: the Jacobian and its decomposition.
            filter: the filter of the step.
            last: the last direction of each parameter, in its shape.
            measures: whether the change is needed; without it, it may be wrong.
        """
        carried = [self.factor * direction.double() for direction in last]
        projected = self.kind == "projected"
        if projected or measures:
            with linearisation.clock.phase("momentum"):
                moved = linearisation.output_change(carried)
        if projected:
            filtered, change = _orthogonal_component(linearisation, filter, moved)
        else:
            filtered, change = linearisation.step(filter)
        directions = [direction + part for direction, part in zip(filtered, carried, strict=True)]
        return directions, change + moved if projected or measures else change


def _orthogonal_component(
    linearisation: Linearisation, filter: SpectralFilter, moved: Tensor
) -> tuple[list[Tensor], Tensor]:
    """Return the step of a filter less the projection P of a direction d with J d = ``moved``."""
    projection = _projection_filter(filter)
    if projection == filter:  # both are linear in the gradient: one product instead of two
        return linearisation.step(filter, linearisation.objective.flat_gradient - moved)
    projected, projected_change = linearisation.step(projection, moved)
    # The gradient last: the report of a Lanczos step is that of the last product.
    directions, change = linearisation.step(filter)
    pairs = zip(directions, projected, strict=True)
    return [direction - part for direction, part in pairs], change - projected_change


def _projection_filter(filter: SpectralFilter) -> SpectralFilter:
    """Return the filter π of the projection P."""
    if isinstance(filter, Damped):
        return filter
    return HalfInverse(-1.0, "auto" if getattr(filter, "auto", False) else filter.rcond)


class PreviousDirection:
    """Previous direction in the attempts of one step; only ``commit`` changes the optimiser state.

    Args:
        momentum: coefficient and kind.
        state: state of the optimizer, by parameter.
        parameters: the parameters of the step.

    Attributes:
        used: whether the newest direction contains a part of the previous one.
    """

    def __init__(self, momentum: Momentum, state: dict[Any, Any], parameters: Sequence[Tensor]):
        self._momentum, self._state, self._parameters = momentum, state, parameters
        self._last = _previous_directions(state, parameters)
        self._newest: list[Tensor] = []
        self.used = False

    def step(
        self, linearisation: Linearisation, filter: SpectralFilter, measures: bool
    ) -> tuple[list[Tensor], Tensor]:
        """Return the step of :meth:`Momentum.step`; from the second attempt on without momentum.

        A further attempt follows a rejected step, and the momentum may be the reason.
        """
        self.used, last, self._last = bool(self._last), self._last, []
        if self.used:
            directions, change = self._momentum.step(linearisation, filter, last, measures)
        else:
            directions, change = linearisation.step(filter)
        # In the dtype of the parameters, to which a loaded state is cast.
        pairs = zip(directions, self._parameters, strict=True)
        self._newest = [direction.to(real_view(parameter).dtype) for direction, parameter in pairs]
        return directions, change

    def commit(self, step_size: float | None) -> None:
        """Store the newest direction; without a step along it, drop the stored one."""
        for parameter, direction in zip(self._parameters, self._newest, strict=True):
            if step_size is not None and step_size > 0:
                self._state.setdefault(parameter, {})["direction"] = direction
            elif parameter in self._state:
                self._state[parameter].pop("direction", None)


def _previous_directions(state: dict[Any, Any], parameters: Sequence[Tensor]) -> list[Tensor]:
    """Return the last direction of each parameter, zero for new ones; empty if there is none."""
    remembered = [state.get(parameter, {}).get("direction") for parameter in parameters]
    if all(direction is None for direction in remembered):
        return []
    pairs = zip(remembered, parameters, strict=True)
    return [
        torch.zeros_like(real_view(p)) if direction is None else direction for direction, p in pairs
    ]
