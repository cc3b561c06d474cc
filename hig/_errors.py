"""Named errors. Each text says what was wrong, the value found and the remedy."""

__all__ = [
    "CorruptResultError",
    "DecompositionError",
    "NonFiniteError",
    "RankError",
    "SampleDependenceError",
    "UnsafeResultError",
]


class NonFiniteError(ArithmeticError):
    """A loss, prediction or Jacobian holds NaN or Inf; no parameter has been changed."""


class SampleDependenceError(ValueError):
    """The layerwise engine was asked for a Jacobian it cannot give exactly.

    Either the samples of the batch influence one another (train-mode batch normalisation, a
    statistic over the batch), or a weight is used where the engine cannot see it (a fused
    kernel, a transposed weight).
    """


class DecompositionError(ArithmeticError):
    """No eigenvalue or singular value decomposition converged, on any fallback."""


class RankError(RuntimeError):
    """Another process of a step that many take together failed or was lost."""


class UnsafeResultError(ValueError):
    """A result file asks for something outside plain Python and numpy; nothing of it was run."""


class CorruptResultError(ValueError):
    """A result file is truncated, is not a pickle, or does not hold one dictionary."""
