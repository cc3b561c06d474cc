r"""Crank–Nicolson steps :math:`(1 + Z)\, s_{t+1} = (1 - Z)\, s_t` with a tridiagonal Z.

The step matrix is :math:`(1 + Z)^{-1} (1 - Z) = 2 (1 + Z)^{-1} - 1`.
"""

from collections.abc import Iterator

import torch
from torch import Tensor

from problems._constants import constant


def crank_nicolson_matrices(diagonal: Tensor, off_diagonal: complex) -> Tensor:
    r"""Step matrices of a Z with constant off-diagonal entries, for any number of Z at once.

    The inverse G of a tridiagonal matrix with diagonal a and constant b next to it needs no
    elimination on dense matrices. With the pivots :math:`d_i = a_i - b^2 / d_{i-1}` from above and
    :math:`e_i = a_i - b^2 / e_{i+1}` from below it is :math:`G_{ii} = 1 / (d_i + e_i - a_i)` and,
    going up a column, :math:`G_{ij} = -(b / d_i)\, G_{i+1, j}` for i < j (Meurant, SIAM J. Matrix
    Anal. Appl. 13, 1992). For the Z of a
    Hamiltonian, i times a real symmetric matrix, no pivot is below 1 and what is multiplied up
    are entries of a matrix of norm at most 1: nothing grows.

    Args:
        diagonal: Diagonals of the Z, (..., S), real or complex; S at least 1.
        off_diagonal: The entry next to the diagonal, common to all.

    Returns:
        Step matrices (..., S, S), symmetric, of the dtype and on the device of ``diagonal``;
        differentiable any number of times, in reverse and forward mode.

    Raises:
        TypeError: If the diagonals are real and the entry next to them is complex.
    """
    if isinstance(off_diagonal, complex) and not diagonal.is_complex():
        raise TypeError(
            f"diagonal must be complex with the off-diagonal entry {off_diagonal}, got "
            f"{diagonal.dtype}; convert it"
        )
    return _Matrices.apply(diagonal, off_diagonal)


def crank_nicolson_states(
    start: Tensor, diagonal: Tensor, off_diagonal: complex
) -> Iterator[Tensor]:
    r"""States after each step, by elimination: no matrix is formed, and no graph is worth having.

    A step is :math:`s_{t+1} = 2 (1 + Z)^{-1} s_t - s_t`. The factors of all tridiagonal matrices
    are found at once, hence T should be a dozen or two, and a solution is two sweeps over the
    entries of the state (Thomas).

    Args:
        start: First states (B, S).
        diagonal: Diagonals of the Z, (T, B, S), of the dtype of ``start``; S at least 1.
        off_diagonal: The entry next to the diagonal, common to all.

    Yields:
        The T states after ``start``, (B, S).
    """
    # Entries first: one contiguous vector over all matrices for each.
    first, *others = (1 + diagonal.movedim(-1, 0).contiguous()).unbind()
    inverse_pivots, squared = [1 / first], off_diagonal**2
    for entry in others:
        inverse_pivots.append(1 / (entry - squared * inverse_pivots[-1]))
    inverses, rows = torch.stack(inverse_pivots, 1), start.mT
    for inverse, factors in zip(inverses, off_diagonal * inverses, strict=True):
        factor = factors.unbind()
        solution = list((inverse * rows).unbind())
        for i in range(1, len(solution)):
            solution[i] = torch.addcmul(solution[i], factor[i], solution[i - 1], value=-1)
        for i in range(len(solution) - 2, -1, -1):
            solution[i] = torch.addcmul(solution[i], factor[i], solution[i + 1], value=-1)
        rows = 2 * torch.stack(solution) - rows
        yield rows.mT


class _Matrices(torch.autograd.Function):
    r"""The matrices M, with :math:`dM = -(M + 1)\, dZ\, (M + 1) / 2`."""

    @staticmethod
    def forward(diagonal: Tensor, off_diagonal: complex) -> Tensor:
        # One contiguous vector over all matrices per entry of the diagonal; from both ends at once.
        main = (1 + diagonal).movedim(-1, 0)
        first, *others = torch.stack([main, main.flip(0)], 1).unbind()
        pivots, squared = [first], constant(-(off_diagonal**2), first.dtype, first.device)
        for entry in others:
            pivots.append(torch.addcdiv(entry, squared, pivots[-1]))
        above, below = torch.stack(pivots, 1).unbind()
        matrices = diagonal.new_empty((*diagonal.shape, len(main)))
        matrices.diagonal(dim1=-2, dim2=-1).copy_(
            (2 / (above + below.flip(0) - main)).movedim(0, -1)
        )
        factors = (-off_diagonal / above).unsqueeze(-1)
        # Each row of the upper triangle is a multiple of the one below it.
        for i in range(len(main) - 2, -1, -1):
            torch.mul(factors[i], matrices[..., i + 1, i + 1 :], out=matrices[..., i, i + 1 :])
            matrices[..., i + 1 :, i] = matrices[..., i, i + 1 :]
        matrices.diagonal(dim1=-2, dim2=-1).sub_(1)
        return matrices

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.save_for_backward(output)
        ctx.save_for_forward(output)

    @staticmethod
    def backward(ctx, cotangent):
        (matrices,) = ctx.saved_tensors
        sides = _plus_one(matrices).mH
        return -0.5 * (sides @ cotangent @ sides).diagonal(dim1=-2, dim2=-1), None

    @staticmethod
    def jvp(ctx, tangent, _):
        (matrices,) = ctx.saved_tensors
        sides = _plus_one(matrices)
        return -0.5 * (sides * tangent.unsqueeze(-2)) @ sides

    @staticmethod
    def vmap(info, in_dims, diagonal, off_diagonal):
        return _Matrices.apply(diagonal.movedim(in_dims[0], 0), off_diagonal), 0


def _plus_one(matrices: Tensor) -> Tensor:
    return matrices + torch.eye(matrices.shape[-1], dtype=matrices.dtype, device=matrices.device)
