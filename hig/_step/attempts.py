"""Trials of one step: directions from one decomposition, each taken back unless it is kept."""

from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Any, Self

import torch
from torch import Tensor

from hig._spectral.filters import SpectralFilter
from hig._step.closure import Closure
from hig._step.linearisation import Linearisation
from hig._step.momentum import Carried
from hig._step.param_groups import require_room
from hig._step.trial_step import RandomState, Trial
from hig._torch.buffers import Buffers
from hig._torch.plain_tensors import plain
from hig._torch.ranks import Ranks

__all__ = ["Attempts", "Evaluation", "Watch"]

# Loss, slope and curvature where nothing asks for them.
_NO_MODEL = (float("nan"), float("nan"), float("nan"))
# Evaluations of a closure that are watched before it is known whether it writes to buffers.
_FIRST_EVALUATIONS = 4


class Watch:
    """Whether the evaluations of a closure are watched for what they write to.

    To watch costs a fifth of a forward pass. Most closures write to nothing: the first evaluations
    and the forward pass of every step show which ones do.
    """

    def __init__(self) -> None:
        self.writes = False
        self._evaluations = 0

    def wanted(self) -> bool:
        """Whether to watch the next evaluation."""
        self._evaluations += 1
        return self.writes or self._evaluations <= _FIRST_EVALUATIONS


class Evaluation:
    """The loss of the same batch at the present parameters, after which only these have changed.

    Args:
        closure: of the step.
        loss: the loss in what it returns.
        parameters: those that are being moved.
        random_state: that at the start of the step.
        ranks: the ranks of the step.
        weight: what the loss of this rank counts.
        watch: whether to look for buffers.
    """

    def __init__(
        self,
        closure: Closure,
        loss: Callable[[Any], Tensor],
        parameters: Sequence[Tensor],
        random_state: RandomState | None,
        ranks: Ranks,
        weight: float,
        watch: Watch,
    ):
        self._closure, self._loss, self._parameters = closure, loss, parameters
        self._random_state, self._ranks, self._weight = random_state, ranks, weight
        self._watch = watch

    def __call__(self) -> float:
        """The loss of the whole batch."""
        assert self._random_state is not None  # only what measures evaluates
        # With gradients enabled: a closure may differentiate its network inside.
        with self._ranks.agreement(), torch.enable_grad():
            if self._watch.wanted():
                loss = self._watched(self._random_state)
            else:
                loss = self._loss(self._random_state.replay(self._closure))
            own = float(plain(loss, "the loss").detach())
        return own if self._ranks.size == 1 else self._ranks.sum_of(self._weight * own)

    def _watched(self, random_state: RandomState) -> Tensor:
        buffers = Buffers(self._parameters)
        try:
            with buffers:
                return self._loss(random_state.replay(self._closure))
        finally:
            self._watch.writes |= buffers.restore()


class Attempts:
    """Makes the trials of one step; as a context it takes back what was not accepted.

    Args:
        linearisation: the decomposed Jacobian.
        carried: what is kept of the last direction.
        parameters: the parameters of the step.
        lrs: their learning rates.
        measures: whether the quadratic model is asked for.
        evaluate: gives the loss at the present parameters.
    """

    def __init__(
        self,
        linearisation: Linearisation,
        carried: Carried,
        parameters: Sequence[Tensor],
        lrs: Sequence[float],
        measures: bool,
        evaluate: Callable[[], float],
    ):
        self._linearisation, self._carried = linearisation, carried
        self._parameters, self._lrs, self._measures = parameters, lrs, measures
        self._evaluate = evaluate
        self._trial: Trial | None = None

    def __call__(self, filter: SpectralFilter) -> Trial:
        """A trial along the direction of a filter; those before it have been taken back."""
        directions, model = self._direction(filter)
        if self._carried.used and model[1] < 0:  # uphill, for what it carries: once more without
            directions, model = self._direction(filter)
        resolution = torch.finfo(self._linearisation.loss.dtype).eps
        self._trial = Trial(
            self._parameters, directions, max(self._lrs), *model, self._evaluate, resolution
        )
        return self._trial

    def _direction(self, filter: SpectralFilter) -> tuple[list[Tensor], tuple[float, float, float]]:
        """One direction per parameter, and loss, slope and curvature along it."""
        directions, change = self._carried.step(self._linearisation, filter, self._measures)
        most = max(self._lrs)
        if any(lr != most for lr in self._lrs):
            scales = [lr / most for lr in self._lrs]
            directions = [d * scale for d, scale in zip(directions, scales, strict=True)]
        return directions, self._linearisation.model(change) if self._measures else _NO_MODEL

    def accept(self, step_size: float | None) -> None:
        """Keep the parameters where they are.

        Raises:
            NonFiniteError: that would be NaN or infinite.
        """
        require_room(self._parameters, step_size)
        self._trial = None
        self._carried.keep(step_size)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._trial is not None:  # done halfway, whatever is raised
            self._trial.undo()
