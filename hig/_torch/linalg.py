"""Decompositions of matrices, repeated on the CPU if they do not converge."""

from collections.abc import Callable

import torch
from torch import Tensor

from hig.errors import DecompositionError

__all__ = ["eigenvalues", "eigenvectors", "repeated_on_cpu", "thin_svd", "with_cpu_fallback"]


def with_cpu_fallback(
    decomposition: Callable[[Tensor], tuple[Tensor, ...]], matrix: Tensor, notes: list[str]
) -> tuple[Tensor, ...]:
    """Run a decomposition; if it does not converge, repeat it on the CPU.

    Args:
        decomposition: one of this file.
        matrix: (..., n, k), finite, or symmetric (..., n, n).
        notes: list to which a repetition adds a line.

    Raises:
        DecompositionError: it does not converge there either.
    """
    try:
        return decomposition(matrix)
    except torch.linalg.LinAlgError as error:
        return repeated_on_cpu(decomposition, matrix, notes, error)


def repeated_on_cpu(
    decomposition: Callable[[Tensor], tuple[Tensor, ...]],
    matrix: Tensor,
    notes: list[str],
    refusal: torch.linalg.LinAlgError,
) -> tuple[Tensor, ...]:
    """Repeat on the CPU a decomposition that did not converge, scaled to unit size.

    Args:
        decomposition: one of this file.
        matrix: (..., n, k), finite, or symmetric (..., n, n).
        notes: list to which the repetition adds a line.
        refusal: the error of the first attempt.

    Raises:
        DecompositionError: it does not converge there either.
    """
    notes.append(f"decomposition repeated on the CPU: {str(refusal).splitlines()[0]}")
    scale = matrix.abs().max().cpu()
    try:
        parts = list(decomposition(matrix.cpu() / scale))
    except torch.linalg.LinAlgError as error:
        raise DecompositionError(
            f"the decomposition of a {tuple(matrix.shape)} matrix with largest entry {scale:.3g} "
            f"did not converge on {matrix.device.type} nor on the CPU ({error}); try another "
            "batch, a smaller lr, or method='svd'"
        ) from error
    values = 1 if decomposition is thin_svd else 0
    parts[values] = parts[values] * scale
    return tuple(part.to(matrix.device) for part in parts)


def eigenvectors(matrix: Tensor) -> tuple[Tensor, Tensor]:
    """Return eigenvalues (..., n), ascending, and eigenvectors (in columns) of (..., n, n)."""
    return torch.linalg.eigh(matrix)


def eigenvalues(matrix: Tensor) -> tuple[Tensor]:
    """Return the eigenvalues (..., n), ascending, of symmetric (..., n, n), as a 1-tuple."""
    return (torch.linalg.eigvalsh(matrix),)


def thin_svd(matrix: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return U (n, r), singular values (r,), descending, and Vᵀ (r, k) of a matrix (n, k)."""
    return torch.linalg.svd(matrix, full_matrices=False)
