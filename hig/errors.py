"""Exceptions, and helpers for error messages.

Each message states the fault, the value found and the remedy. The exceptions are also in ``hig``.
"""

import torch
from torch import Tensor

__all__ = [
    "CorruptResultError",
    "DecompositionError",
    "InsufficientMemoryError",
    "NonFiniteError",
    "RankError",
    "SampleDependenceError",
    "UnsafeResultError",
    "described",
    "out_of_memory",
    "printable",
]


class NonFiniteError(ArithmeticError):
    """A loss, prediction or Jacobian holds NaN or Inf; no parameter has been changed."""


class SampleDependenceError(ValueError):
    """The layerwise engine was asked for a Jacobian that it cannot compute exactly.

    Either the samples of the batch influence one another (train-mode batch normalisation, a
    statistic over the batch), or a weight is used where the engine cannot see it (a fused
    kernel, a transposed weight).
    """


class DecompositionError(ArithmeticError):
    """No eigenvalue or singular value decomposition converged, on any fallback."""


class InsufficientMemoryError(MemoryError):
    """An allocation would exceed the available memory; nothing was allocated for it."""


class RankError(RuntimeError):
    """Another process rank of a distributed step failed or was lost."""


class UnsafeResultError(ValueError):
    """A result file asks for code outside plain Python and numpy; nothing of it was run."""


class CorruptResultError(ValueError):
    """A result file is truncated, is not a pickle, or does not hold one dictionary."""


# Longer integers are not printed: Python refuses those of thousands of digits.
_SHOWN_BITS = 256


def described(value: object) -> str:
    """Return a short description of an invalid value, for an error message."""
    if isinstance(value, type):
        return f"the class {value.__name__}"
    if isinstance(value, Tensor):
        return f"a tensor of shape {tuple(value.shape)}"
    if type(value) is int and value.bit_length() > _SHOWN_BITS:
        return f"a whole number of {value.bit_length()} bits"
    if value is None or isinstance(value, bool | int | float | complex | str):
        return repr(value)
    if isinstance(value, list | tuple):
        return f"a {type(value).__name__} of {len(value)}" if value else "an empty list"
    return type(value).__name__


def printable(value: object) -> str:
    """Return a value of unknown origin as one line of text, without control characters."""
    try:
        text = str(value)
    except (RecursionError, ValueError):  # nested without end; a number of thousands of digits
        text = f"a {type(value).__name__} that cannot be written out"
    parts = (c if c.isprintable() else repr(c)[1:-1] for c in text)
    return "".join(parts)


def out_of_memory(error: RuntimeError) -> bool:
    """Return whether an error says that memory ran out."""
    # The CPU allocator raises a plain RuntimeError, and so do the driver and its libraries.
    texts = ("can't allocate memory", "out of memory", "ALLOC_FAILED")
    return isinstance(error, torch.OutOfMemoryError) or any(text in str(error) for text in texts)
