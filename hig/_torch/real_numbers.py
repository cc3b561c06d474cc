"""Complex tensors as the real numbers that they consist of.

A complex parameter has two real columns for each entry. torch's gradient of a real loss by a
complex entry holds the derivatives by its real and its imaginary part.
"""

import torch
from torch import Tensor

__all__ = ["from_real", "real_size", "real_view"]


def real_view(tensor: Tensor) -> Tensor:
    """Return a tensor of real numbers, (..., 2) of a complex one; a view, without a graph."""
    tensor = tensor.detach()
    return torch.view_as_real(tensor.resolve_conj()) if tensor.is_complex() else tensor


def real_size(tensor: Tensor) -> int:
    """Return how many real numbers a tensor consists of."""
    return tensor.numel() * (2 if tensor.is_complex() else 1)


def from_real(numbers: Tensor, like: Tensor) -> Tensor:
    """Return real numbers, in any shape, as a tensor of the shape and dtype of another."""
    if not like.is_complex():
        return numbers.to(like.dtype).view(like.shape)
    pairs = numbers.to(like.dtype.to_real()).reshape(*like.shape, 2)
    return torch.view_as_complex(pairs)
