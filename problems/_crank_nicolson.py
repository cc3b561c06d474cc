r"""Crank–Nicolson steps :math:`(1 + Z)\, s_{t+1} = (1 - Z)\, s_t` with a tridiagonal Z.

The step matrix is :math:`(1 + Z)^{-1} (1 - Z) = 2 (1 + Z)^{-1} - 1`.
"""

import torch
from torch import Tensor


def crank_nicolson_matrices(diagonal: Tensor, off_diagonal: complex) -> Tensor:
    r"""Step matrices of a Z with constant off-diagonal entries, for any number of Z at once.

    The inverse G of a tridiagonal matrix needs no elimination on dense matrices. With the pivots
    :math:`d_i = a_i - b^2 / d_{i-1}` from above and :math:`e_i = a_i - b^2 / e_{i+1}` from below
    it is :math:`G_{ii} = 1 / (d_i + e_i - a_i)` and, going up a column,
    :math:`G_{ij} = -(b / d_i)\, G_{i+1, j}` for i < j (Meurant, SIAM J. Matrix Anal. Appl. 13,
    1992). For the symmetric Z of a Hamiltonian, :math:`|b / d_i| < 1`: nothing grows.

    Args:
        diagonal: Diagonals of the Z, (..., S), real or complex; S at least 1.
        off_diagonal: The entry beside the diagonal, common to all.

    Returns:
        Step matrices (..., S, S), symmetric, of the dtype and on the device of ``diagonal``.
    """
    # One contiguous vector over all matrices per row of the diagonal.
    main = (1 + diagonal).movedim(-1, 0).contiguous().unbind()
    squared = off_diagonal**2
    above, below = [main[0]], [main[-1]]
    for entry in main[1:]:
        above.append(entry - squared / above[-1])
    for entry in main[-2::-1]:
        below.append(entry - squared / below[-1])
    own = [2 / (d + e - a) for d, e, a in zip(above, below[::-1], main, strict=True)]
    # Rows of the upper triangle, from the last one up: each is a multiple of the one below it.
    row = own[-1].unsqueeze(-1)
    parts = [row - 1]
    for pivot, entry in zip(above[-2::-1], own[-2::-1], strict=True):
        beside = (-off_diagonal / pivot).unsqueeze(-1) * row
        entry = entry.unsqueeze(-1)
        row = torch.cat([entry, beside], -1)
        parts += [beside, entry - 1]
    return _symmetric(torch.cat(parts[::-1], -1), len(main))


def _symmetric(triangle: Tensor, size: int) -> Tensor:
    """(…, S, S) from the rows of its upper triangle, (…, S (S + 1) / 2)."""
    positions = torch.arange(triangle.shape[-1], device=triangle.device)
    upper, right = torch.triu_indices(size, size, device=triangle.device)
    index = positions.new_empty((size, size))
    index[upper, right] = index[right, upper] = positions
    full = triangle.index_select(-1, index.flatten())
    return full.view(*triangle.shape[:-1], size, size)
