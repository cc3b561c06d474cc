r"""Golub-Kahan bidiagonalisation of a Jacobian, from its products with vectors alone.

From a first vector :math:`u_1` the products grow orthonormal bases with
:math:`J V_k = U_{k+1} B_k` and :math:`J^T U_k = V_k B_{1:k}^T`, B lower bidiagonal. In exact
arithmetic it is Lanczos' iteration on :math:`J J^T`; working on J itself keeps singular values that
squaring would lose in the rounding (Golub, Kahan 1965; Paige, Saunders, LSQR, ACM TOMS 1982).
"""

from typing import Protocol

import torch
from torch import Tensor

__all__ = ["Bidiagonalisation", "Products"]


# Share of its length that a vector keeps in one pass if that pass was enough.
ENOUGH = 0.7


class Products(Protocol):
    """Products with a Jacobian (n, P): all that a decomposition needs of it."""

    shape: tuple[int, int]

    def vjp(self, weights: Tensor) -> Tensor:
        """Jᵀ w: (n,) float64 -> (P,) float64."""
        ...

    def jvp(self, direction: Tensor) -> Tensor:
        """J d: (P,) float64 -> (n,) float64."""
        ...


class Bidiagonalisation:
    """Bases that grow step by step, each step one product with J and one with its transpose.

    All vectors are orthogonalised against all earlier ones: otherwise converged singular values
    would appear again and again. If that removes most of a vector it is done twice, which is enough
    (Daniel et al., Math. Comp. 1976).

    Args:
        jacobian: J.
        start: (n,) float64, not zero.
        dtype: dtype of the bases. In float32 they need half the memory, and are as exact as a
            Jacobian that was itself computed in float32.

    Attributes:
        steps: k, so far.
        left: (k + 1, n), rows orthonormal, the first along ``start``.
        right: (k, P), rows orthonormal.
        adjoint_error: relative difference of uᵀ (J v) and (Jᵀ u)ᵀ v in the first step; rounding,
            unless the two products are not adjoint. None before.
    """

    def __init__(self, jacobian: Products, start: Tensor, dtype: torch.dtype):
        rows, columns = jacobian.shape
        self.steps = 0
        self.adjoint_error: Tensor | None = None
        self._jacobian = jacobian
        self._left = start.new_empty((1, rows), dtype=dtype)
        self._right = start.new_empty((0, columns), dtype=dtype)
        self._left[0] = start / start.norm()
        self._diagonal: list[Tensor] = []
        self._below: list[Tensor] = []

    @property
    def left(self) -> Tensor:
        """(k + 1, n)."""
        return self._left[: self.steps + 1]

    @property
    def right(self) -> Tensor:
        """(k, P)."""
        return self._right[: self.steps]

    def extend(self, steps: int) -> None:
        """Grow the bases to so many steps."""
        self._left = _enlarge(self._left, steps + 1)
        self._right = _enlarge(self._right, steps)
        while self.steps < steps:
            self._step(self.steps)
            self.steps += 1

    def _step(self, k: int) -> None:
        last = self._left[k].double()
        transposed = self._jacobian.vjp(last)
        if k:  # the overlap with the last vector is known, and most of what is to be removed
            transposed -= self._below[-1] * self._right[k - 1]
        self._diagonal.append(_append(self._right, k, transposed))
        newest = self._right[k].double()
        product = self._jacobian.jvp(newest)
        if k == 0:
            length = self._diagonal[0]
            scale = torch.maximum(length, product.norm())  # a first length may itself be rounding
            tiny = torch.finfo(torch.float64).tiny
            self.adjoint_error = (last @ product - length).abs() / scale.clamp_min(tiny)
        self._below.append(_append(self._left, k + 1, product - self._diagonal[k] * last))

    def matrix(self) -> Tensor:
        """B (k + 1, k), float64."""
        matrix = self._left.new_zeros((self.steps + 1, self.steps), dtype=torch.float64)
        matrix.diagonal().copy_(torch.stack(self._diagonal))
        matrix.diagonal(-1).copy_(torch.stack(self._below))
        return matrix


def _enlarge(basis: Tensor, size: int) -> Tensor:
    if size <= len(basis):
        return basis
    larger = basis.new_empty((size, basis.shape[1]))
    larger[: len(basis)] = basis
    return larger


def _append(basis: Tensor, count: int, vector: Tensor) -> Tensor:
    """Append a vector as the next row, orthogonalised and normalised; return its norm.

    A vector within the span of the rows leaves rounding alone, of a norm near zero and a direction
    that does not matter; an exact zero stays zero.
    """
    rows, vector = basis[:count], vector.to(basis.dtype)
    length = vector.double().norm()
    for _ in range(2):
        before, vector = length, vector - rows.T @ (rows @ vector)
        length = vector.double().norm()
        if bool(length > ENOUGH * before):
            break
    basis[count] = vector / length.clamp_min(torch.finfo(vector.dtype).tiny).to(vector.dtype)
    return length
