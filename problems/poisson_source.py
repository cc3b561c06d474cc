r"""A network that finds the source behind an observed field, trained through an implicit solver.

The network sees the solution of :math:`\Delta x = s` and returns s; PhiFlow solves the equation
for its answer, and the solution is compared with what was observed. The physics is the inverse of
that of `problems.poisson`: it scales smooth fields by a large factor and rough ones by a small one.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from types import MappingProxyType
from typing import ClassVar, Self

from torch import Tensor

from problems._fields import (
    CenteredGrid,
    Field,
    extrapolation,
    field,
    math,
    on_grid,
    phiflow_like,
)
from problems._folded import folded, unit_samples
from problems._problem import Settings, parameter
from problems.poisson import Poisson

PASSES = ("together", "single")
# Of the residual, for sources of length 1.
TOLERANCE = 1e-12


@dataclass(frozen=True)
class PoissonSource(Poisson):
    r"""The source s of :math:`\Delta x = s`, from x, through PhiFlow's conjugate gradients.

    Sources are smooth noise, PhiFlow's ``Noise()``, on a square grid of unit cells; observations
    are the solutions of the equation with zeros outside the grid. Everything but the physics is as
    in `Poisson`.

    PhiFlow stops when the residual of *every* sample is below the tolerance of *every* other, the
    larger of a relative and an absolute one. Sources, and cotangents in the backward pass, are
    therefore solved for with length 1 and both tolerances equal.

    Attributes:
        passes: How many backward passes go through the solver at a time. ``"single"`` is what
            PhiFlow's solvers offer. ``"together"`` repeats the samples along PhiFlow's batch
            dimension, so that all rows of a Jacobian come from one solve; same numbers. It is
            faster up to some 24 samples a batch; beyond, PhiFlow's report on each sample of a
            solve, written in Python, takes longer than the solve.
    """

    passes: str = parameter(
        "together", "backward passes through the solver, together for small batches", PASSES
    )

    name: ClassVar[str] = "poisson_source"
    quantity: ClassVar[str] = "source"
    inverse: ClassVar[bool] = True
    settings: ClassVar[Mapping[str, Settings]] = MappingProxyType(
        {
            # All of it our own choice, from short trials with batches of 8 for Jacobian methods.
            "hig": Settings(batch_size=16, lr=0.1, rcond=1e-5),
            "gn": Settings(batch_size=16, lr=0.3, rcond=1e-5),
            "lm": Settings(batch_size=16, lr=0.3, damping=1.0),
            "adam": Settings(batch_size=64, lr=3e-3),
            "sgd": Settings(batch_size=64, lr=1e-4),
            "adagrad": Settings(batch_size=64, lr=0.03),
            "adadelta": Settings(batch_size=64, lr=1.0),
            "rmsprop": Settings(batch_size=64, lr=1e-3),
            "lbfgs": Settings(batch_size=256, lr=1.0),
            "soap": Settings(batch_size=64, lr=3e-3),
            "khig": Settings(batch_size=64, lr=3e-3, schedule="cosine"),
            "muon": Settings(batch_size=64, lr=1e-2),
        }
    )

    def __post_init__(self):
        super().__post_init__()
        if self.passes not in PASSES:
            raise ValueError(f"passes must be one of {PASSES}, got {self.passes!r}")

    def plain(self) -> Self:
        """The same problem with one backward pass through the solver at a time."""
        return replace(self, passes="single")

    def physics(self, fields: Tensor) -> Tensor:
        """Solutions (B, size, size) of Poisson's equation for sources (B, size, size).

        Whatever the dtype, the equation is solved in float64: in float32 conjugate gradients stay
        above a useful tolerance. A source that is not finite gives a solution that is NaN.

        Raises:
            RuntimeError: If conjugate gradients do not converge.
        """
        unit, length = unit_samples(fields)
        return _SOLVES[self.passes](unit.double()).to(fields.dtype) * length


def _solve(source: Field) -> Field:
    # A matrix and not `field.laplace` itself: one product instead of a stencil put together in
    # Python makes the solve ten times as fast. Dense, for the grids are small.
    device = source.values.default_backend.get_default_device()
    matrix = _laplacian(*source.resolution.sizes, device.ref)
    solve = math.Solve("CG", TOLERANCE, TOLERANCE, x0=0 * source, rank_deficiency=0)
    return math.solve_linear(matrix, source, solve)


@lru_cache(maxsize=8)
def _laplacian(x: int, y: int, device: str) -> math.Tensor:
    """Matrix of PhiFlow's Laplacian, on the device that is set."""
    grid = CenteredGrid(0.0, extrapolation.ZERO, x=x, y=y)
    matrix, _ = math.matrix_from_function(field.laplace, grid)
    return math.dense(matrix)


_SOLVES = {
    passes: folded(partial(on_grid, _solve), phiflow_like, together=passes == "together")
    for passes in PASSES
}
