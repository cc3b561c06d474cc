r"""Spectral step from products with the Jacobian: no Gram matrix, no decomposition of its size.

After k steps of bidiagonalisation that start at g, with :math:`B = Q S P^T`, the step
:math:`V \varphi(S) U^T g` is approximated by :math:`|g|\, V_k P \varphi(S) Q^T e_1`. It becomes
exact as soon as all singular values that the filter keeps have converged: after little more steps
than there are such values, whatever the size of the Jacobian. Before that the small ones are
missing, as if the cut-off were higher.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise

import torch
from torch import Tensor

from hig._spectral.filters import SpectralFilter, cutoff, filter_gains
from hig._spectral.golub_kahan import Bidiagonalisation, Products
from hig._torch.linalg import thin_svd, with_cpu_fallback
from hig.arguments import Range, check_count, check_number
from hig.errors import NonFiniteError

__all__ = ["Krylov", "Lanczos"]

TOLERANCE = Range("in (0, 1)", lambda x: 0 < x < 1)


@dataclass(frozen=True)
class Lanczos:
    """Settings of ``method="lanczos"``.

    Args:
        tolerance: estimated relative error of the direction at which to stop, in (0, 1).
        steps: largest number of products with the Jacobian, and with its transpose, for one
            direction. As many vectors of n and of P numbers are held.

    Raises:
        TypeError: if an argument is not a number.
        ValueError: if it lies outside its range.
    """

    tolerance: float = 1e-3
    steps: int = 300

    def __post_init__(self) -> None:
        check_number(self.tolerance, "tolerance", TOLERANCE, "try 1e-3")
        check_count(self.steps, "steps", "try 300")


# Steps before the direction is first evaluated, and the growth of the bases until the next time.
FIRST_LOOK, GROWTH = 8, 1.25
# Ratio of successive changes of the direction above which there is no convergence.
SLOWEST = 0.95


class Krylov:
    """Decomposition by bidiagonalisation that starts at the gradient of the loss.

    Args:
        jacobian: J.
        dtype: precision in which J was computed.
        settings: tolerance and number of steps.

    Attributes:
        error_estimate: estimated relative error of a direction, at most 1; the largest so far.
    """

    route = "lanczos"
    _bases: Bidiagonalisation  # set by the first step, as are
    _values: Tensor  # the converged singular values

    def __init__(self, jacobian: Products, dtype: torch.dtype, settings: Lanczos):
        self.notes: list[str] = []
        self.error_estimate = 0.0
        # The rounding of J and of the bases: smaller singular values are indistinguishable from 0.
        self.floor = self.resolution = 2 * torch.finfo(dtype).eps
        self._jacobian, self._dtype, self._settings = jacobian, dtype, settings
        self._start: Tensor | None = None

    @property
    def started(self) -> bool:
        """Whether singular values are known, after the first direction."""
        return self._start is not None

    @property
    def singular_values(self) -> Tensor:
        """(k,) float64, descending: those of the bidiagonal matrix, the largest most exact."""
        return self._values

    @property
    def largest(self) -> Tensor:
        """See :class:`hig._spectral.decomposition.Decomposition`; of the last direction."""
        return self._values.max().square()

    @property
    def squared_norm(self) -> Tensor:
        """See :class:`hig._spectral.decomposition.Decomposition`; that of the converged values."""
        return self._values.square().sum()

    def pulled_norm(self, loss_gradient: Tensor) -> Tensor:
        """See :class:`hig._spectral.decomposition.Decomposition`; by the bases of the last step."""
        length = loss_gradient.norm()
        return length * self._bases.matrix()[0, 0].abs() if bool(length > 0) else length

    def spectrum(self) -> Callable[[], Tensor]:
        """See :class:`hig._spectral.decomposition.Decomposition`."""
        return partial(torch.clone, self._values)

    def step(self, filter: SpectralFilter, loss_gradient: Tensor) -> tuple[Tensor, Tensor]:
        """See :class:`hig._spectral.decomposition.Decomposition`.

        Raises:
            DecompositionError: no decomposition of the bidiagonal matrix converges.
            NonFiniteError: a product with J or its transpose holds NaN or Inf.
        """
        length = loss_gradient.norm()
        if not bool(length > 0):
            self._values = loss_gradient.new_zeros(1)
            return loss_gradient.new_zeros(self._jacobian.shape[1]), loss_gradient
        if self._start is None or not torch.equal(self._start, loss_gradient):
            # Another damping for the same gradient reuses the bases.
            self._start = loss_gradient.clone()
            self._bases = Bidiagonalisation(self._jacobian, loss_gradient, self._dtype)
        coefficients = length * self._iterate(filter)
        size = len(coefficients)
        change = self._bases.matrix()[: size + 1, :size] @ coefficients
        direction = self._bases.right[:size].T @ coefficients.to(self._dtype)
        output_change = self._bases.left[: size + 1].T @ change.to(self._dtype)
        return direction.double(), output_change.double()

    def _iterate(self, filter: SpectralFilter) -> Tensor:
        """Return coefficients (k,) of the direction in the right basis, for a unit gradient."""
        most = min(self._settings.steps, *self._jacobian.shape)
        size, changes = min(FIRST_LOOK, most), []
        self._bases.extend(size)
        self._require_sound_products()
        coefficients = self._coefficients(filter, size)
        error = 1.0
        while size < most and (error > self._settings.tolerance or self._cut_is_unresolved(filter)):
            size = min(most, math.ceil(GROWTH * size))
            self._bases.extend(size)
            earlier, coefficients = coefficients, self._coefficients(filter, size)
            changes.append(_relative_change(earlier, coefficients))
            error = _estimate(changes)
        if size < min(self._jacobian.shape):
            self.error_estimate = max(self.error_estimate, error)
        if size == self._settings.steps and error > self._settings.tolerance:
            self.notes[:] = [f"stopped after {size} steps, at an error of about {error:.0e}"]
        return coefficients

    def _cut_is_unresolved(self, filter: SpectralFilter) -> bool:
        """Return whether singular values below the cut-off may still be unresolved.

        If small values are amplified, their absence shows in the changes of the direction. If not,
        the whole gradient is found at once and nothing changes until one is cut.
        """
        if filter.needs_small_values or not filter.rcond:
            return False
        return bool(self._values.min() > cutoff(filter, self._values, self.floor))

    def _coefficients(self, filter: SpectralFilter, size: int) -> Tensor:
        """Return the coefficients (size,) from the first ``size`` steps, for a unit gradient."""
        matrix = self._bases.matrix()[: size + 1, :size]
        if not bool(torch.isfinite(matrix).all()):
            raise NonFiniteError(
                "a product with the Jacobian holds NaN or Inf; parameters are unchanged; check the "
                "simulator's derivative: method='gram' names the samples"
            )
        left, values, right = with_cpu_fallback(thin_svd, matrix, [])
        self._values = values
        return right.T @ (values * filter_gains(filter, values, self.floor) * left[0])

    def _require_sound_products(self) -> None:
        assert self._bases.adjoint_error is not None  # the first step has measured it
        error = float(self._bases.adjoint_error)
        if error > 10 * torch.finfo(self._dtype).eps ** 0.5:
            raise ValueError(
                "products with the Jacobian and with its transpose are not adjoint: relative "
                f"difference {error:.1e}; a function of the simulator has a wrong second "
                "derivative; use method='gram', which does not need it"
            )


def _relative_change(earlier: Tensor, coefficients: Tensor) -> float:
    """Return the relative change from an earlier to a longer vector of coefficients."""
    difference = coefficients.clone()
    difference[: len(earlier)] -= earlier
    return float(
        difference.norm() / coefficients.norm().clamp_min(torch.finfo(coefficients.dtype).tiny)
    )


def _estimate(changes: Sequence[float]) -> float:
    """Return an estimate of the relative error: the remaining changes as a geometric series.

    Its ratio is the slower of the last two: changes do not shrink evenly. Never less than the last
    change.
    """
    if len(changes) < 3:
        return 1.0
    ratios = [later / max(sooner, 1e-300) for sooner, later in pairwise(changes[-3:])]
    ratio = min(max(ratios), SLOWEST)
    return min(1.0, changes[-1] * max(1.0, ratio / (1 - ratio)))
