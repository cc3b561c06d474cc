"""Checked gradients of several losses: one matrix, or one vector for each loss."""

import math
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from hig.arguments import check_dense, check_same_device, check_tensor
from hig.conflictfree._coverage import check_coverage
from hig.errors import NonFiniteError, described

__all__ = ["as_vectors", "check_finite"]

Vectors = Tensor | list[Tensor]


def as_vectors(gradients: Tensor | Sequence[Tensor]) -> Vectors:
    """Return checked gradients without a graph; a list on the CPU is not stacked, to save memory.

    They are (m, P) or, on the CPU and of one dtype, m vectors (P,).

    Raises:
        TypeError: they are not real floating-point tensors.
        ValueError: they do not form a matrix with m > 0, or are of different parameters.
    """
    if isinstance(gradients, Tensor):
        return _checked_matrix(gradients)
    if not isinstance(gradients, Iterable):
        raise TypeError(
            f"gradients must be a matrix (m, P) or m vectors, got {described(gradients)}; "
            "loss_gradients(losses, parameters) makes one"
        )
    gradients = list(gradients)
    for number, gradient in enumerate(gradients):
        check_tensor(gradient, f"the gradient of loss {number}")
    _check_alike(gradients)
    if not gradients or gradients[0].ndim != 1:
        raise ValueError(_not_a_matrix((len(gradients), *gradients[0].shape) if gradients else ()))
    if gradients[0].device.type != "cpu" or len({gradient.dtype for gradient in gradients}) > 1:
        return torch.stack(gradients).detach()
    return [gradient.detach() if gradient.requires_grad else gradient for gradient in gradients]


def check_finite(rows: Vectors, losses: Sequence[int] | None = None) -> None:
    """Raise a NonFiniteError that names the losses (by default 0 to m - 1) of bad gradients."""
    # One sum per vector decides the usual case. It may overflow for a finite vector: look again.
    parts = [rows] if isinstance(rows, Tensor) else rows
    if all(math.isfinite(part.sum().item()) for part in parts):
        return
    bad = [int((~torch.isfinite(row)).sum()) for row in rows]
    numbers = range(len(rows)) if losses is None else losses
    descriptions = [f"{number} ({n} entries)" for number, n in zip(numbers, bad, strict=True) if n]
    if descriptions:
        raise NonFiniteError(
            f"the gradient of loss {', '.join(descriptions)} of {rows[0].numel()} holds NaN or "
            "Inf; nothing has been changed; check this loss on this batch, or take a smaller step"
        )


def _check_alike(gradients: list[Tensor]) -> None:
    """Raise unless vectors have one shape, one device, and entries for the same parameters."""
    if any([gradient.device != gradients[0].device for gradient in gradients[1:]]):
        check_same_device({f"gradient {i}": gradient for i, gradient in enumerate(gradients)})
    if any([gradient.shape != gradients[0].shape for gradient in gradients[1:]]):
        shapes = {gradient.shape for gradient in gradients}
        raise ValueError(
            f"gradients must have the same shape, got {sorted(map(tuple, shapes))}; where only "
            "some losses reach a parameter, use get_gradient_vector(..., none_grad_mode='zero')"
        )
    check_coverage(gradients)


def _checked_matrix(gradients: Tensor) -> Tensor:
    if gradients.ndim != 2 or not gradients.shape[0]:
        raise ValueError(_not_a_matrix(tuple(gradients.shape)))
    if not gradients.is_floating_point():
        raise TypeError(
            f"gradients must be real floating point, got {gradients.dtype}; for complex "
            "parameters use their real view (torch.view_as_real)"
        )
    check_dense(gradients, "gradients")
    return gradients.detach()


def _not_a_matrix(shape: tuple[int, ...]) -> str:
    return (
        f"gradients must be a matrix (m, P) with one row per loss, got {shape or 'no gradients'}; "
        "stack the flattened gradients of at least one loss"
    )
