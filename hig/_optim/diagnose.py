"""One batch looked at closely: its spectrum, the cut, and how far the quadratic model holds."""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np
from torch import Tensor
from torch.optim.optimizer import ParamsT

from hig._jacobian.engine import Engine
from hig._spectral.filters import HalfInverse, SpectralFilter, noise_level
from hig._step.closure import Closure, check_closure
from hig._step.linearisation import Linearisation
from hig._step.optimizer import JacobianOptimizer
from hig._step.options import StepOptions
from hig._step.reports import StepReport
from hig._step.trial_step import RandomState, Trial
from hig._torch.buffers import Buffers
from hig._torch.host import PhaseClock
from hig._torch.threads import on_fitting_threads

__all__ = ["Diagnosis", "Direction", "diagnose"]

Array = np.ndarray[Any, np.dtype[Any]]

# Step sizes that are tried, in Cauchy steps: a thousandth to ten of them.
RELATIVE_STEPS = np.geomspace(1e-3, 10, 25)

_NAMES = {-1.0: "Gauss-Newton", -0.5: "half-inverse", 1.0: "gradient"}


@dataclass(frozen=True)
class Direction:
    """What a step along one direction would do to the loss of the batch.

    Attributes:
        kappa: exponent of the singular values.
        rcond: relative cut-off in force.
        rank: singular values that are kept.
        cauchy: step size at which the quadratic model of the loss is lowest.
        step_sizes: (25,) from a thousandth to ten times that, float64.
        predicted: (25,) change of the loss by the quadratic model.
        achieved: (25,) measured change; infinite where the loss is not finite.
    """

    kappa: float
    rcond: float
    rank: int
    cauchy: float
    step_sizes: Array
    predicted: Array
    achieved: Array

    @property
    def name(self) -> str:
        """What the direction is called, such as "half-inverse"."""
        return _NAMES.get(self.kappa, f"kappa {self.kappa:g}")

    @property
    def best(self) -> int:
        """Index of the step size after which the measured loss is lowest."""
        return int(np.argmin(self.achieved))

    def __str__(self) -> str:
        size, change = self.step_sizes[self.best], self.achieved[self.best]
        return (
            f"{self.name:<14} rank {self.rank:>5}, rcond {self.rcond:.1e}, Cauchy step "
            f"{self.cauchy:.3g}; lowest loss at step size {size:.3g} (change {change:+.3e})"
        )


@dataclass(frozen=True)
class Diagnosis:
    """One batch in numbers; prints as a table.

    Attributes:
        loss: its loss.
        rows: n, outputs of all samples.
        columns: P, parameters.
        engine: how the Jacobian was obtained.
        singular_values: (min(n, P),) float64, descending.
        noise: size up to which singular values may be rounding alone, in the same unit.
        directions: one for each exponent, in the order given.
    """

    loss: float
    rows: int
    columns: int
    engine: str | Engine
    singular_values: Array
    noise: float
    directions: list[Direction]

    def results(self) -> dict[str, object]:
        """All of it for `hig.save_results`; ``python -m plots.diagnosis FILE`` draws it."""
        directions = [asdict(d) | {"name": d.name} for d in self.directions]
        return asdict(self) | {"directions": directions}

    def __str__(self) -> str:
        values = self.singular_values
        noisy = int((values <= self.noise).sum())
        lines = [
            f"loss {self.loss:.4g}; J {self.rows} x {self.columns}, engine {self.engine}",
            f"singular values {values[0]:.2e} to {values[-1]:.2e}; {noisy} of {len(values)} may be "
            "rounding alone",
        ]
        return "\n".join([*lines, *map(str, self.directions)])


@on_fitting_threads
def diagnose(
    params: ParamsT,
    closure: Closure,
    kappas: Sequence[float] = (-0.5, -1.0, 1.0),
    rcond: float | Literal["auto"] = 1e-6,
    engine: str | Engine = "auto",
    chunk: int | None = None,
) -> Diagnosis:
    """Look at one batch: which ``rcond``, step size and direction would suit it?

    One Jacobian and its decomposition, then 25 evaluations of the loss per direction. Parameters,
    random state, and the buffers that the closure changes in place are afterwards as before.

    Example::

        diagnosis = hig.diagnose(network.parameters(), closure)
        print(diagnosis)
        hig.save_results("batch.pickle", diagnosis.results())
        # python -m plots.diagnosis batch.pickle --out batch.png

    Args:
        params: as for :class:`hig.HIG`.
        closure: as for ``hig.HIG.step``: returns ``(loss, prediction)``.
        kappas: exponents of the directions that are compared, each in [-1, 1].
        rcond: relative cut-off of all of them, or "auto".
        engine: as for :class:`hig.HIG`.
        chunk: as for :class:`hig.HIG`.

    Returns:
        What was found.

    Raises:
        NonFiniteError: loss, prediction or Jacobian hold NaN or Inf.
        TypeError: an argument is of another kind.
        ValueError: see ``hig.HIG.step``; or there is no exponent.
    """
    check_closure(closure)
    filters = [HalfInverse(kappa=kappa, rcond=rcond) for kappa in kappas]
    if not filters:
        raise ValueError("kappas must name at least one exponent, got none; -0.5 is half-inverse")
    looker = _BatchDiagnosis(params, filters, engine, chunk)
    parameters = [p for group in looker.param_groups for p in group["params"]]
    buffers = Buffers(parameters)

    def watched() -> tuple[Tensor, Tensor]:
        with buffers:
            return closure()

    try:
        RandomState(parameters[0].device).replay(lambda: looker.step(watched))
    finally:
        buffers.restore()
    return looker.diagnosis


class _BatchDiagnosis(JacobianOptimizer):
    """An optimiser that tries many steps and takes none."""

    diagnosis: Diagnosis

    def __init__(
        self,
        params: ParamsT,
        filters: Sequence[HalfInverse],
        engine: str | Engine,
        chunk: int | None,
    ):
        # The most demanding filter decides how exactly small singular values are found.
        first = min(filters, key=lambda filter: filter.kappa)
        super().__init__(params, 1.0, first, StepOptions(engine=engine, chunk=chunk))
        self._filters = filters

    def _measures(self) -> bool:
        return True

    def _advance(
        self,
        trial_of: Callable[[SpectralFilter], Trial],
        linearisation: Linearisation,
        clock: PhaseClock,
    ) -> StepReport:
        directions = [self._look(filter, trial_of, linearisation) for filter in self._filters]
        report = linearisation.report(self.filter)
        values = report.singular_values
        self.diagnosis = Diagnosis(
            float(report.loss),
            report.rows,
            report.columns,
            report.engine,
            values.detach().cpu().numpy(),
            float(noise_level(values, report.dtype)),
            directions,
        )
        return report

    def _look(
        self,
        filter: HalfInverse,
        trial_of: Callable[[SpectralFilter], Trial],
        linearisation: Linearisation,
    ) -> Direction:
        trial, report = trial_of(filter), linearisation.report(filter)
        flat = not trial.curvature > 0  # a loss that is linear in the outputs has no best step
        cauchy = 1.0 if flat else trial.slope / trial.curvature
        sizes = cauchy * RELATIVE_STEPS
        achieved = [trial.measure(float(size)) - trial.loss for size in sizes]
        trial.undo()
        predicted = 0.5 * sizes**2 * trial.curvature - sizes * trial.slope
        return Direction(
            filter.kappa, report.rcond, report.rank, cauchy, sizes, predicted, np.array(achieved)
        )
