r"""Decompositions of a joint Jacobian, and the spectral step by each of them.

Four routes to :math:`d = V \varphi(S) U^T g`:

- ``row_gram``: eigenvectors of :math:`J J^T` (n, n); :math:`d = J^T U \varphi(S) S^{-1} U^T g`.
- ``column_gram``: eigenvectors of :math:`J^T J` (P, P); :math:`d = V \varphi(S) S^{-1} V^T J^T g`.
- ``svd``: singular vectors of J itself, the only route that resolves singular values below
  about 1e-7 of the largest; J is formed in float64.
- ``lanczos``: from products with J alone, see :mod:`hig._spectral.lanczos`.

A damped filter without truncation needs no singular values: on the first two routes
:math:`(J J^T + \lambda)^{-1}` and :math:`(J^T J + \lambda)^{-1}` are solved by a Cholesky factor,
an order of magnitude faster.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import Protocol
from weakref import ReferenceType, ref

import torch
from torch import Tensor

from hig._spectral.filters import Damped, SpectralFilter, filter_gains
from hig._spectral.golub_kahan import Products
from hig._spectral.lanczos import Lanczos
from hig._torch.linalg import (
    eigenvalues,
    eigenvectors,
    repeated_on_cpu,
    thin_svd,
    with_cpu_fallback,
)
from hig.arguments import METHODS, check_choice

__all__ = [
    "Decomposition",
    "DeferredSpectrum",
    "GramSpectrum",
    "check_method",
    "choose_route",
    "decompose",
    "gram_floor",
]

# Largest float64 Jacobian that is decomposed itself if its Gram matrix is too coarse.
SVD_BYTES = 512 * 2**20
# Above this relative cut-off a float64 Gram matrix determines the step to about 1e-9.
GRAM_EXACT_RCOND = 1e-3


class Decomposition(Protocol):
    """Singular values and vectors of J, ready to be filtered any number of times.

    Attributes:
        singular_values: (min(n, P),) float64, descending; may be computed when asked for.
        floor: relative size below which a singular value is indistinguishable from zero, and cut.
        resolution: the same, also where nothing is cut.
        route: "row_gram", "column_gram", "svd" or "lanczos".
        notes: deviations, for the report.
    """

    floor: float
    route: str
    notes: list[str]

    @property
    def resolution(self) -> float:
        """See above."""
        ...

    @property
    def largest(self) -> Tensor:
        """Square of the largest singular value, a scalar; or a bound above it that costs less."""
        ...

    @property
    def squared_norm(self) -> Tensor:
        """Sum of the squared singular values, a scalar."""
        ...

    def pulled_norm(self, loss_gradient: Tensor) -> Tensor:
        """Return |Jᵀ g|, the norm of the gradient in the parameters: a scalar."""
        ...

    @property
    def singular_values(self) -> Tensor:
        """See above."""
        ...

    def step(self, filter: SpectralFilter, loss_gradient: Tensor) -> tuple[Tensor, Tensor]:
        """Return the direction d (P,) and the change of the outputs J d (n,), in float64."""
        ...

    def spectrum(self) -> Callable[[], Tensor]:
        """Return a function of the singular values, callable later, that holds no large tensor."""
        ...


class GramSpectrum:
    """Singular values that cost more than the step, computed on first access.

    Args:
        matrix: J Jᵀ or Jᵀ J, float64. It is large: the optimiser holds this object until its next
            step, and the report a :class:`DeferredSpectrum`.
    """

    def __init__(self, matrix: Tensor):
        self._matrix = matrix

    @cached_property
    def values(self) -> Tensor:
        """(k,) float64, descending."""
        (values,) = with_cpu_fallback(eigenvalues, self._matrix, [])
        return values.clamp_min(0).sqrt().flip(0)


class DeferredSpectrum:
    """Function that returns the singular values while their source exists.

    Args:
        source: computes them; weakly held.
    """

    def __init__(self, source: GramSpectrum):
        self._source: ReferenceType[GramSpectrum] | None = ref(source)

    @property
    def source(self) -> GramSpectrum | None:
        """Source of the singular values; None once it is gone."""
        return None if self._source is None else self._source()

    def __call__(self) -> Tensor:
        """Return the singular values.

        Raises:
            ValueError: their source is gone.
        """
        if (source := self.source) is None:
            raise ValueError(
                "the singular values of a damped step are computed on first access, from a matrix "
                "that is held until the next step begins, and this report is older, a copy from a "
                "file, or of an optimizer that is gone; read report.singular_values right after "
                "the step"
            )
        return source.values

    def __deepcopy__(self, memory: dict[int, object]) -> "DeferredSpectrum":
        return self

    def __getstate__(self) -> dict[str, object]:
        """Return no source: the matrix is not written to files."""
        return {"_source": None}


@dataclass
class _Eigenvectors:
    jacobian: Products
    vectors: Tensor
    ascending: Tensor  # singular values in the order of the vectors: flipping those would copy
    floor: float
    notes: list[str] = field(default_factory=list)

    @property
    def singular_values(self) -> Tensor:
        """Descending."""
        return self.ascending.flip(0)

    @property
    def resolution(self) -> float:
        """See :class:`Decomposition`."""
        return self.floor

    @property
    def largest(self) -> Tensor:
        """See :class:`Decomposition`."""
        return self.ascending[-1].square()

    @property
    def squared_norm(self) -> Tensor:
        """See :class:`Decomposition`."""
        return self.ascending.square().sum()

    def spectrum(self) -> Callable[[], Tensor]:
        """See :class:`Decomposition`."""
        return partial(torch.flip, self.ascending, (0,))

    def _filter(self, filter: SpectralFilter, vector: Tensor) -> tuple[Tensor, Tensor]:
        gains = filter_gains(filter, self.ascending, self.floor)
        coefficients = gains * (self.vectors.T @ vector)
        return self.vectors @ coefficients, coefficients


class _Rows(_Eigenvectors):
    route = "row_gram"

    def pulled_norm(self, loss_gradient: Tensor) -> Tensor:
        """See :class:`Decomposition`."""
        return (self.ascending * (self.vectors.T @ loss_gradient)).norm()

    def step(self, filter: SpectralFilter, loss_gradient: Tensor) -> tuple[Tensor, Tensor]:
        """See :class:`Decomposition`."""
        weights, coefficients = self._filter(filter, loss_gradient)
        # J d = J Jᵀ w, and the eigenvectors already know J Jᵀ: no product with J is needed.
        output_change = self.vectors @ (self.ascending.square() * coefficients)
        return self.jacobian.vjp(weights), output_change


class _Columns(_Eigenvectors):
    route = "column_gram"

    def pulled_norm(self, loss_gradient: Tensor) -> Tensor:
        """See :class:`Decomposition`."""
        return self.jacobian.vjp(loss_gradient).norm()

    def step(self, filter: SpectralFilter, loss_gradient: Tensor) -> tuple[Tensor, Tensor]:
        """See :class:`Decomposition`."""
        direction, _ = self._filter(filter, self.jacobian.vjp(loss_gradient))
        return direction, self.jacobian.jvp(direction)


@dataclass
class _Singular:
    left: Tensor
    singular_values: Tensor
    right: Tensor
    floor: float
    notes: list[str] = field(default_factory=list)
    route = "svd"

    @property
    def resolution(self) -> float:
        """See :class:`Decomposition`."""
        return self.floor

    @property
    def largest(self) -> Tensor:
        """See :class:`Decomposition`."""
        return self.singular_values[0].square()

    @property
    def squared_norm(self) -> Tensor:
        """See :class:`Decomposition`."""
        return self.singular_values.square().sum()

    def pulled_norm(self, loss_gradient: Tensor) -> Tensor:
        """See :class:`Decomposition`."""
        return (self.singular_values * (self.left.T @ loss_gradient)).norm()

    def step(self, filter: SpectralFilter, loss_gradient: Tensor) -> tuple[Tensor, Tensor]:
        """See :class:`Decomposition`."""
        s = self.singular_values
        coefficients = s * filter_gains(filter, s, self.floor) * (self.left.T @ loss_gradient)
        return self.right.T @ coefficients, self.left @ (s * coefficients)

    def spectrum(self) -> Callable[[], Tensor]:
        """See :class:`Decomposition`."""
        return partial(torch.clone, self.singular_values)


class _CholeskyDamped:
    """J Jᵀ or Jᵀ J, factored for every damping; eigenvectors if the damping is too small."""

    def __init__(self, jacobian: Products, matrix: Tensor, route: str):
        self.jacobian, self.route = jacobian, route
        self.notes: list[str] = []
        self.floor = 0.0
        self.resolution = gram_floor(len(matrix))
        self._matrix, self.deferred = matrix, GramSpectrum(matrix)
        self.largest = matrix.abs().sum(1).max()  # not below the largest eigenvalue
        self.squared_norm = matrix.diagonal().sum()

    @property
    def singular_values(self) -> Tensor:
        """Descending; they cost more than the step, and are computed on first access."""
        return self.deferred.values

    def pulled_norm(self, loss_gradient: Tensor) -> Tensor:
        """See :class:`Decomposition`."""
        if self.route == "row_gram":
            return (loss_gradient @ (self._matrix @ loss_gradient)).clamp_min(0).sqrt()
        return self.jacobian.vjp(loss_gradient).norm()

    def spectrum(self) -> DeferredSpectrum:
        """See :class:`Decomposition`; works for as long as ``deferred`` is held."""
        return DeferredSpectrum(self.deferred)

    @cached_property
    def _exact(self) -> "Decomposition":
        return _by_eigenvectors(self.jacobian, self._matrix, self.route)

    def step(self, filter: SpectralFilter, loss_gradient: Tensor) -> tuple[Tensor, Tensor]:
        """See :class:`Decomposition`."""
        assert isinstance(filter, Damped)
        factor = self._factor(filter.damping)
        if factor is None:
            self.notes[:] = ["damping is below the rounding of the Gram matrix: eigenvectors"]
            self.floor = self._exact.floor
            return self._exact.step(filter, loss_gradient)
        by_rows = self.route == "row_gram"
        vector = loss_gradient if by_rows else self.jacobian.vjp(loss_gradient)
        solution = torch.cholesky_solve(vector.unsqueeze(1), factor).squeeze(1)
        if not by_rows:
            return solution, self.jacobian.jvp(solution)
        return self.jacobian.vjp(solution), self._matrix @ solution

    def _factor(self, damping: float) -> Tensor | None:
        """Return the Cholesky factor of the shifted matrix; None if rounding hides the shift."""
        if bool(damping <= self.resolution**2 * self.largest):
            return None
        shifted = self._matrix.clone()
        shifted.diagonal().add_(damping)
        factor, failed = torch.linalg.cholesky_ex(shifted)
        return None if bool(failed) else factor


def check_method(method: str | Lanczos) -> None:
    """Raise a `ValueError` unless a value is a known method of decomposition."""
    if not isinstance(method, Lanczos):
        check_choice(method, "method", METHODS, " or a hig.Lanczos")


def gram_floor(size: int) -> float:
    """Return the relative accuracy of singular values from a float64 Gram matrix of some size.

    The error of its eigenvalues is a few sqrt(size) roundings of the largest one; a singular
    value is the square root of an eigenvalue.
    """
    return (4 * size**0.5 * torch.finfo(torch.float64).eps) ** 0.5


def choose_route(
    shape: tuple[int, int], dtype: torch.dtype, filter: SpectralFilter, method: str | Lanczos
) -> str:
    """Choose between "row_gram", "column_gram", "svd" and "lanczos".

    Args:
        shape: (n, P) of the Jacobian.
        dtype: precision in which the Jacobian was computed.
        filter: the filter that will be applied.
        method: "auto", "gram", "svd", "lanczos" or a :class:`Lanczos`.
    """
    if method == "lanczos" or isinstance(method, Lanczos):
        return "lanczos"
    n, columns = shape
    # The Jacobian's own rounding hides what a float64 Gram matrix of float32 factors loses.
    too_coarse = (
        dtype == torch.float64 and filter.needs_small_values and filter.rcond < GRAM_EXACT_RCOND
    )
    if method == "svd" or (method == "auto" and too_coarse and 8 * n * columns <= SVD_BYTES):
        return "svd"
    return "row_gram" if n <= columns else "column_gram"


def decompose(
    jacobian: Products, matrix: Tensor, route: str, filter: SpectralFilter
) -> Decomposition:
    """Decompose a joint Jacobian, as far as a filter needs it.

    Args:
        jacobian: J, (n, P).
        matrix: the matrix of the route: J Jᵀ, Jᵀ J or J itself; float64 and finite.
        route: "row_gram", "column_gram" or "svd".
        filter: the filter that will be applied, or another of its class and ``rcond``.

    Raises:
        DecompositionError: if no fallback converges.
    """
    if route == "svd":
        notes: list[str] = []
        floor = torch.finfo(torch.float64).eps * max(matrix.shape)
        left, singular_values, right = with_cpu_fallback(thin_svd, matrix, notes)
        return _Singular(left, singular_values, right, floor, notes)
    if isinstance(filter, Damped) and filter.rcond == 0:
        return _CholeskyDamped(jacobian, matrix, route)
    return _by_eigenvectors(jacobian, matrix, route)


def _by_eigenvectors(jacobian: Products, matrix: Tensor, route: str) -> Decomposition:
    notes: list[str] = []
    try:
        values, vectors = torch.linalg.eigh(matrix)
    except torch.linalg.LinAlgError as error:
        values, vectors = repeated_on_cpu(eigenvectors, matrix, notes, error)
    ascending = values.clamp_min(0).sqrt()
    route_class = _Rows if route == "row_gram" else _Columns
    return route_class(jacobian, vectors, ascending, gram_floor(len(matrix)), notes)
