r"""Spectral filters: functions of the singular values that a step applies to the Jacobian.

With the thin decomposition :math:`J = U S V^T` every step of the family reads
:math:`d = V \varphi(S) U^T g`; the filter is :math:`\varphi` together with the truncation
:math:`s_i > \mathrm{rcond} \cdot s_{max}`. Pure maths: singular values in, factors out.
"""

from copy import copy
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, Protocol

import torch
from torch import Tensor

from hig.arguments import FRACTION, KAPPA, NON_NEGATIVE, POSITIVE, check_number
from hig.errors import described

__all__ = ["Damped", "HalfInverse", "SpectralFilter", "noise_level"]

# Roundings of the root mean square of the singular values that ``rcond="auto"`` cuts.
ROUNDINGS = 256
# It never cuts at more than this: half precision has two or three digits.
MOST_CUT = 1e-2


class SpectralFilter(Protocol):
    r"""Interface of a spectral filter.

    Attributes:
        rcond: relative cut-off in [0, 1); singular values ``s <= rcond * s_max`` contribute zero.
        needs_small_values: whether small singular values are amplified and must be accurate; a
            damped filter levels off and needs none.
    """

    @property
    def rcond(self) -> float: ...

    @property
    def needs_small_values(self) -> bool: ...

    def gain(self, singular_values: Tensor) -> Tensor:
        r"""Return :math:`\varphi(s) / s` for positive ``singular_values``, same shape."""
        ...


@dataclass(frozen=True)
class HalfInverse:
    r"""Power filter :math:`\varphi(s) = s^\kappa` with truncation, and damping if asked for.

    ``kappa = 1`` is gradient descent, ``-1/2`` the half-inverse gradient, ``-1`` Gauss-Newton
    (Schnell, Holl, Thuerey, ICLR 2022, arXiv 2203.10131).

    Args:
        kappa: exponent in [-1, 1].
        rcond: relative cut-off in [0, 1); strict, ``s > rcond * s_max`` is kept. "auto" cuts
            values that may be rounding alone, see :func:`noise_level`; ``rcond`` is then 0 until
            the singular values are known.
        damping: :math:`\lambda \ge 0` in units of the squared singular values, for
            :math:`\varphi(s) = s^\kappa \, s^2 / (s^2 + \lambda)`.

    Attributes:
        auto: whether the cut-off still waits for singular values.

    Raises:
        TypeError: if an argument is not a number.
        ValueError: if it lies outside its range.
    """

    kappa: float = -0.5
    rcond: float = 1e-6
    damping: float = 0.0
    auto: bool = field(default=False, init=False)

    if TYPE_CHECKING:  # "auto" is accepted, a number is stored

        def __init__(
            self, kappa: float = -0.5, rcond: float | Literal["auto"] = 1e-6, damping: float = 0.0
        ): ...

    def __post_init__(self) -> None:
        if isinstance(self.rcond, str) and self.rcond == "auto":
            object.__setattr__(self, "auto", True)
            object.__setattr__(self, "rcond", 0.0)
        check_rcond(self.rcond, ", and 'auto' chooses one")
        remedy = "-0.5 is the half-inverse gradient, -1 Gauss-Newton, 1 gradient descent"
        check_number(self.kappa, "kappa", KAPPA, remedy)
        check_number(self.damping, "damping", NON_NEGATIVE, "0 for the power alone")

    @property
    def needs_small_values(self) -> bool:
        """Return whether small singular values are amplified, so that they must be accurate."""
        return self.kappa < 1

    def gain(self, singular_values: Tensor) -> Tensor:
        r"""Return :math:`\varphi(s) / s`, same shape and dtype as ``singular_values``."""
        powers = singular_values.pow(self.kappa - 1)
        return powers / (1 + self.damping / singular_values.square()) if self.damping else powers

    def resolved(
        self, singular_values: Tensor | None, dtype: torch.dtype, least: float = 0.0
    ) -> "HalfInverse":
        """Return the same filter with a number for ``rcond``.

        Args:
            singular_values: all of them, (min(n, P),); None if products with J find some of them.
                The largest is then taken for their root mean square, and float32 for a finer
                dtype: smaller values take more products than J has rows.
            dtype: precision in which the Jacobian was computed.
            least: the smallest cut-off to choose.
        """
        if not self.auto:
            return self
        if singular_values is None:
            eps = max(torch.finfo(dtype).eps, torch.finfo(torch.float32).eps)
            rcond = ROUNDINGS * eps
        else:
            relative = noise_level(singular_values, dtype) / singular_values.max()
            rcond = float(relative.nan_to_num(0.0))
        found = copy(self)  # in range: nothing to check in every step
        object.__setattr__(found, "rcond", min(max(rcond, least), MOST_CUT))
        object.__setattr__(found, "auto", False)
        return found


@dataclass(frozen=True)
class Damped:
    r"""Levenberg-Marquardt filter :math:`\varphi(s) = s / (s^2 + \lambda)`.

    Args:
        damping: :math:`\lambda > 0`, in units of the squared singular values.
        rcond: relative cut-off in [0, 1), as in :class:`HalfInverse`.

    Raises:
        TypeError: if ``damping`` or ``rcond`` is not a number.
        ValueError: if ``damping`` is not positive and finite, or ``rcond`` outside its range.
    """

    damping: float = 1e-3
    rcond: float = 0.0

    def __post_init__(self) -> None:
        check_rcond(self.rcond)
        remedy = "use GaussNewton or HalfInverse(kappa=-1) for a step without damping"
        check_number(self.damping, "damping", POSITIVE, remedy)

    @property
    def needs_small_values(self) -> bool:
        """Return False: the response levels off below ``sqrt(damping)``."""
        return False

    def gain(self, singular_values: Tensor) -> Tensor:
        r"""Return :math:`1 / (s^2 + \lambda)`, same shape and dtype as ``singular_values``."""
        return 1 / (singular_values.square() + self.damping)


def check_filter(filter: SpectralFilter) -> None:
    """Raise a `TypeError` unless a value has the attributes of a :class:`SpectralFilter`."""
    names = ("rcond", "needs_small_values", "gain")
    if isinstance(filter, type) or not all(hasattr(filter, name) for name in names):
        raise TypeError(
            f"filter must be a spectral filter, got {described(filter)}; such as hig.HalfInverse() "
            "or hig.Damped(1e-3)"
        )


def noise_level(singular_values: Tensor, dtype: torch.dtype) -> Tensor:
    r"""Return the size up to which singular values may be rounding alone: a scalar.

    Entries of J with independent relative errors :math:`c \epsilon` form an error matrix whose
    largest singular value is about :math:`c \epsilon \|J\|_F (1/\sqrt{n} + 1/\sqrt{P})`, which
    is at most :math:`2 c \epsilon` times the root mean square of the singular values. Rounding adds
    up over the operations of a simulation: :math:`c` was 1 to 200 on the published problems.

    Args:
        singular_values: all of them, (min(n, P),).
        dtype: precision in which the Jacobian was computed.
    """
    return ROUNDINGS * torch.finfo(dtype).eps * singular_values.square().mean().sqrt()


def check_rcond(rcond: float, others: str = "") -> None:
    """Raise unless ``0 <= rcond < 1``; ``others``: further accepted values, for the message."""
    remedy = "1e-6 suits float32 Jacobians of neural networks"
    check_number(rcond, "rcond", FRACTION, remedy + others)


def filter_gains(filter: SpectralFilter, singular_values: Tensor, floor: float) -> Tensor:
    r"""Return truncated gains :math:`\varphi(s_i) / s_i`, zero for an ``s_i`` that is cut.

    Args:
        filter: the filter.
        singular_values: (k,), non-negative, any order.
        floor: relative accuracy of the singular values; smaller ones are indistinguishable from
            zero, so the cut-off is ``max(rcond, floor)``.

    Returns:
        (k,) gains, same dtype. All zero if all singular values are zero.
    """
    # Strict: with rcond = 0, or with all singular values zero, a zero must be cut, not raised to
    # a negative power.
    keep = singular_values > cutoff(filter, singular_values, floor)
    safe = torch.where(keep, singular_values, torch.ones_like(singular_values))
    return torch.where(keep, filter.gain(safe), torch.zeros_like(singular_values))


def cutoff(filter: SpectralFilter, singular_values: Tensor, floor: float) -> Tensor:
    """Return the absolute cut-off: a scalar tensor ``max(rcond, floor) * s_max``."""
    return max(filter.rcond, floor) * singular_values.max()
