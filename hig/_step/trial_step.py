"""Trial steps: apply, measure, undo."""

import math
from collections.abc import Callable, Iterable, Sequence
from functools import cached_property
from types import TracebackType
from typing import Self

import torch
from torch import Tensor

from hig._spectral.filters import SpectralFilter
from hig._step.earlier_points import EarlierPoints, Point
from hig._step.linearisation import Linearisation, QuadraticModel
from hig._step.momentum import PreviousDirection
from hig._step.objective import StepContext
from hig._step.param_groups import LARGE_STEP, check_parameters_finite
from hig._torch.autograd_graph import real_view

__all__ = ["MOST_TRIES", "Attempts", "Trial", "restore_parameters"]

# A rejected step is tried again at most so often, shorter.
MOST_TRIES = 6
# For rules that do not measure.
_NO_MODEL = QuadraticModel(math.nan, math.nan, math.nan)
# The rounding of the loss is an estimate: a change that is not predicted must exceed it by this.
_UNPREDICTED = 8.0


class Trial:
    r"""Parameters along a direction, with the quadratic model of the loss along it.

    A step of size :math:`\eta` changes the outputs by :math:`-\eta v`, so the model of the loss
    is :math:`L - \eta\, g \cdot v + \tfrac12 \eta^2 |v^T H v|`.

    Args:
        parameters: the parameters, changed in place.
        directions: one per parameter, float64.
        lr: the learning rate, a factor of the step size of a rule.
        loss: the loss before the step; this and the next two are NaN if the rule does not measure.
        slope: g · v.
        curvature: vᵀ H v.
        evaluate: returns the loss of the same batch at the present parameters.
        resolution: rounding of the loss, relative to it.
        rounding: change of the loss by a rounding of outputs and parameters, or a function that
            computes it.
        largest: square of the largest singular value.
        damped_step: step size of a damped direction as it is, :math:`|v|^2 / |v^T H v|`: for a
            curvature c of the loss by the outputs, 1/c. Infinite if it is not known.
        attempt: number of trials of this step before this one.
        earlier: parameters of earlier steps; None for rules that do not look back.
        tries: step sizes that a rule should try before it gives up.
        damped: whether the direction has a damping that can fall.
        sketched: whether the curvature is that of a part of the outputs.

    Attributes:
        notes: what the rule noticed, for the report.
        returned: whether the parameters are those of the safe point.
    """

    def __init__(
        self,
        parameters: Sequence[Tensor],
        directions: Sequence[Tensor],
        lr: float,
        loss: float,
        slope: float,
        curvature: float,
        evaluate: Callable[[], float],
        resolution: float = 0.0,
        rounding: float | Callable[[], float] = 0.0,
        largest: float = 0.0,
        damped_step: float = math.inf,
        attempt: int = 0,
        earlier: EarlierPoints | None = None,
        tries: int = MOST_TRIES,
        damped: bool = False,
        sketched: bool = False,
    ):
        self._resolution, self._rounding = resolution, rounding
        self.lr, self.loss, self.slope, self.curvature = lr, loss, slope, abs(curvature)
        self.largest, self.attempt, self._earlier = largest, attempt, earlier
        self.damped_step = damped_step
        self.tries, self.damped, self.sketched = tries, damped, sketched
        self.notes: list[str] = []
        self.returned = False
        self._parameters, self._directions, self._evaluate = parameters, directions, evaluate
        self._start: list[Tensor] | None = None
        self._losses = {0.0: loss}
        self.step_size = 0.0

    @cached_property
    def unseen(self) -> float:
        """Change of the loss that is hidden by its rounding."""
        rounding = self._rounding() if callable(self._rounding) else self._rounding
        return 4 * self._resolution * abs(self.loss) + 2 * rounding

    @property
    def start(self) -> list[Tensor]:
        """Values of the parameters before the step."""
        if self._start is None:
            self._start = [real_view(parameter).clone() for parameter in self._parameters]
        return self._start

    def move(self, step_size: float) -> None:
        """Set the parameters to ``start - step_size * direction``; 0 restores them exactly."""
        if step_size == 0:
            self.undo()
            return
        for parameter, start, direction in zip(
            self._parameters, self.start, self._directions, strict=True
        ):
            real_view(parameter).copy_(start - step_size * direction)
        self.step_size = step_size

    def whole_ratio(self) -> float:
        r"""Return the gain ratio of the step to the lowest point of the model, extrapolated.

        A step of any size :math:`\eta` shows the error of the curvature: achieved and predicted
        decrease differ by :math:`\tfrac12 \eta^2` times that. NaN if it is lost in rounding.
        """
        by_model = 0.5 * self.step_size * self.step_size * self.curvature
        if by_model <= self.unseen:
            return self.gain_ratio() if self.curvature == 0 else math.nan
        achieved = self.loss - self.measure(self.step_size)
        return 1 - (self.predicted_gain(self.step_size) - achieved) / by_model

    def undo(self) -> None:
        """Restore the parameters, also after an interrupted move; allocates no memory."""
        if self._start is not None:
            restore_parameters(self._parameters, self._start)
        self.step_size, self.returned = 0.0, False

    def measure(self, step_size: float) -> float:
        """Move there and return the loss; infinite if it is not a finite number."""
        if self.step_size != step_size or self._start is None:
            self.move(step_size)
        if step_size not in self._losses:
            loss = self._evaluate()
            self._losses[step_size] = loss if math.isfinite(loss) else math.inf
        return self._losses[step_size]

    def last_step(self) -> tuple[float, float] | None:
        """Return slope and curvature of the loss along the last step, at its end: at the start.

        Both for the whole step as the unit of length; None if it is not known.
        """
        return None if self._earlier is None else self._earlier.last_step()

    def parameters_were_set(self) -> bool:
        """Return whether others than the optimiser have moved the parameters since its last step.

        The points of earlier steps are forgotten then.
        """
        if self._earlier is None or not self._earlier.were_set():
            return False
        self._earlier.forget()
        return True

    def loss_at_safe_point(self) -> float | None:
        """Return the loss of this batch there, infinite if it is not a number; None without one."""
        safe = None if self._earlier is None else self._earlier.values(Point.SAFE)
        if safe is None:
            return None
        start = self.start
        restore_parameters(self._parameters, safe)
        loss = self._evaluate()
        restore_parameters(self._parameters, start)
        return loss if math.isfinite(loss) else math.inf

    def keep_safe_point(self) -> None:
        """Make the parameters before the step the safe point."""
        if self._earlier is not None:
            self._earlier.keep_safe(self.start)

    def return_to_safe_point(self) -> None:
        """Move to the safe point, which ends the step."""
        safe = None if self._earlier is None else self._earlier.values(Point.SAFE)
        if safe is not None and self.start:  # remembered before it is overwritten
            restore_parameters(self._parameters, safe)
            self.returned = True

    def same_initial_loss(self, loss: float) -> bool | None:
        """Return whether the loss before the step is this one, but for the order of sums.

        None if that cannot be known, as near an exact fit, where the loss of another batch may
        differ by no more than the rounding of the outputs.
        """
        difference = abs(self.loss - loss)
        if difference <= 16 * self._resolution * abs(self.loss):
            return True
        return None if difference <= self.unseen else False

    def predicted_gain(self, step_size: float) -> float:
        """Return the decrease of the loss by the quadratic model at a step size."""
        # step_size**2 would raise an OverflowError instead of being infinite.
        return step_size * self.slope - 0.5 * (step_size * step_size) * self.curvature

    def can_gain(self) -> bool:
        """Return whether the lowest point of the quadratic model is visibly below the loss."""
        best = self.slope / self.curvature if self.curvature > 0 else self.lr
        return self.predicted_gain(best) > self.unseen

    def gain_ratio_at(self, step_size: float) -> float:
        """Return the gain ratio at another step size, by the curvature that this one has shown.

        NaN if that is lost in rounding, or if the model predicts no gain there.
        """
        if step_size == self.step_size:
            return self.gain_ratio()
        achieved = self.loss - self.measure(self.step_size)
        excess = self.step_size * self.slope - achieved
        predicted = self.predicted_gain(step_size)
        if 0.5 * self.step_size**2 * self.curvature <= self.unseen or predicted <= self.unseen:
            return math.nan
        return (step_size * self.slope - excess * (step_size / self.step_size) ** 2) / predicted

    def gain_ratio(self) -> float:
        """Return the achieved over the predicted decrease of the loss at the present step size.

        NaN if both are below the rounding of the loss, as on a plateau far above zero or at an
        exact fit: such a step shows nothing. Minus infinity if the model predicts an increase.
        """
        predicted = self.predicted_gain(self.step_size)
        if not predicted > 0 and self.slope != 0:
            return -math.inf
        achieved = self.loss - self.measure(self.step_size)
        if predicted <= self.unseen and abs(achieved) <= _UNPREDICTED * self.unseen:
            return math.nan
        return achieved / predicted if predicted > 0 else -math.inf


@torch.no_grad()
def restore_parameters(parameters: Iterable[Tensor], values: Iterable[Tensor]) -> None:
    """Copy values into parameters."""
    for parameter, value in zip(parameters, values, strict=True):
        real_view(parameter).copy_(real_view(value))


class Attempts:
    """Trials of one step; as a context it undoes a trial that was not accepted.

    Args:
        linearisation: the decomposed Jacobian.
        previous: the previous direction, for momentum; None without momentum.
        step: parameters and learning rates of the step.
        measures: whether the quadratic model is needed.
        evaluate: returns the loss at the present parameters.
        earlier: parameters of earlier steps; None for rules that do not look back.
    """

    def __init__(
        self,
        linearisation: Linearisation,
        previous: PreviousDirection | None,
        step: StepContext,
        measures: bool,
        evaluate: Callable[[], float],
        earlier: EarlierPoints | None = None,
    ):
        self._linearisation, self._previous, self._earlier = linearisation, previous, earlier
        self._parameters, self._lrs, self._measures = step.parameters, step.lrs, measures
        self._evaluate = evaluate
        self._trial: Trial | None = None
        self._count = 0

    def __call__(
        self, filter: SpectralFilter, tries: int = MOST_TRIES, damped: bool = False
    ) -> Trial:
        """Return a trial along the direction of a filter; earlier ones must have been undone.

        Args:
            filter: the filter.
            tries: step sizes that a rule should try along it before it gives up.
            damped: whether it has a damping that can fall.
        """
        directions, model = self._direction(filter)
        uphill = model.slope < 0
        if uphill and self._previous and self._previous.used:  # due to momentum: again without
            directions, model = self._direction(filter)
        resolution = torch.finfo(self._linearisation.loss.dtype).eps
        loss, slope, curvature, largest, squared_length = model
        # With momentum the direction is no damped step.
        known = curvature != 0 and not self._previous
        damped_step = squared_length / abs(curvature) if known else math.inf
        self._trial = Trial(
            self._parameters, directions, max(self._lrs), loss, slope, curvature, self._evaluate,
            resolution, self._linearisation.rounding, largest, damped_step, self._count,
            self._earlier, tries, damped,
            self._linearisation.objectives[0].sketched,
        )  # fmt: skip
        self._count += 1
        return self._trial

    @property
    def with_momentum(self) -> bool:
        """Whether directions contain momentum."""
        return self._previous is not None

    def _direction(self, filter: SpectralFilter) -> tuple[list[Tensor], QuadraticModel]:
        """Return one direction per parameter, and the quadratic model along it."""
        if self._previous:
            directions, change = self._previous.step(self._linearisation, filter, self._measures)
        else:
            directions, change = self._linearisation.step(filter)
        most = max(self._lrs)
        if any(lr != most for lr in self._lrs):
            scales = [lr / most for lr in self._lrs]
            directions = [d * scale for d, scale in zip(directions, scales, strict=True)]
        if not self._measures:
            return directions, _NO_MODEL
        return directions, self._linearisation.model(change)

    def accept(self, step_size: float | None) -> None:
        """Keep the present parameters.

        Raises:
            NonFiniteError: they are NaN or infinite.
        """
        if step_size is not None and step_size > LARGE_STEP:
            check_parameters_finite(self._parameters, step_size)
        if self._earlier and self._trial is not None:
            self._earlier.commit(self._trial.start, self._trial.returned)
        self._trial = None
        if self._previous:
            self._previous.commit(step_size)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        error_type: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._trial is not None:  # not accepted: an error or an interruption
            self._trial.undo()
