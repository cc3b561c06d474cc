"""The pullback of one linearisation of a simulator, called no more often than it must be.

Its contract is that it is linear and that samples are apart. A cotangent that is, for each sample,
a combination of earlier ones then has the same combination of their gradients. The contract is
held against a call in the first linearisations and seldom later.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["Contract", "Pullback"]

Gradients = list[Tensor | None]

# Linearisations in which a combination is compared with a call: the first ones, then every so many.
FIRST, EVERY = 2, 64
# Numbers, of cotangents and gradients together, that may be remembered of one linearisation.
REMEMBERED = 2**22
# Units of rounding by which a combination may differ from a call.
UNITS = 30


@dataclass
class Contract:
    """Whether a pullback was seen to be linear, and its samples to be apart.

    Attributes:
        holds: False once that was not so.
        used: linearisations in which a combination could be made.
        apart: whether no sample was seen to influence another, in a pullback that is linear only
            up to the tolerance of a solver.
    """

    holds: bool = True
    used: int = 0
    apart: bool = False

    def is_due(self) -> bool:
        """Whether the present linearisation, counted by now, is one that compares."""
        return self.used <= FIRST or self.used % EVERY == 0


class Pullback:
    """A pullback, from a cotangent (B, ...) to one gradient (B, ...) per input, None for zero.

    Args:
        call: the user's.
        contract: shared by all linearisations of a simulator.
    """

    def __init__(self, call: Callable[[Tensor], Gradients], contract: Contract):
        self._call, self.contract = call, contract
        self._directions: list[Tensor] = []  # (B, m) float64, orthonormal or zero for each sample
        self._gradients: list[Gradients] = []
        self._errors: list[Tensor] = []  # (B,), bounds of the rounding of these gradients
        self._room, self._counted = REMEMBERED, False

    def __call__(self, cotangent: Tensor) -> Gradients:
        """The gradients, by a call or as a combination."""
        if not self.contract.holds or cotangent.numel() > self._room:
            return self._call(cotangent)
        flat, units = _rows(cotangent.detach()), UNITS * _eps(cotangent)
        shares, remainder = self._taken_apart(flat)
        new = remainder.norm(dim=1) > units * flat.norm(dim=1)
        if self._directions and not bool(new.any()):
            combined = _sum_of(shares, self._gradients)
            # Directions that were nearly known before have inexact gradients.
            if bool((self._rounding(shares) <= units * _norms(combined).to(flat.device)).all()):
                return self._compared(cotangent, combined)
            return self._call(cotangent)
        gradients = self._call(cotangent)
        self._remember(torch.where(new[:, None], remainder, 0), shares, gradients, _eps(cotangent))
        return gradients

    def _taken_apart(self, flat: Tensor) -> tuple[list[Tensor], Tensor]:
        """The shares (B,) of each known direction in a cotangent, and what is left of it."""
        totals = [torch.zeros_like(flat[:, 0]) for _ in self._directions]
        remainder = flat
        for _ in range(2):  # the second time takes what rounding left
            for total, direction in zip(totals, self._directions, strict=True):
                share = (remainder * direction).sum(1)
                total += share
                remainder = remainder - share[:, None] * direction
        return totals, remainder

    def _rounding(self, shares: list[Tensor]) -> Tensor:
        """The rounding of a combination, (B,)."""
        parts = [share * error for share, error in zip(shares, self._errors, strict=True)]
        return torch.stack(parts).norm(dim=0)

    def _compared(self, cotangent: Tensor, combined: Gradients) -> Gradients:
        """The combination, held against a call where that is due."""
        contract = self.contract
        contract.used += not self._counted
        self._counted = True
        if contract.is_due():
            called = self._call(cotangent)
            contract.holds = self._agrees(cotangent, combined, called)
            if not contract.holds:
                return called
        return [None if gradient is None else gradient.to(cotangent.dtype) for gradient in combined]

    def _agrees(self, cotangent: Tensor, combined: Gradients, called: Gradients) -> bool:
        """Whether a combination equals a call: up to rounding, or to the tolerance of a solver."""
        sizes, eps = _norms(combined), _eps(cotangent)
        errors = _norms([_difference(a, b) for a, b in zip(combined, called, strict=True)])
        if bool((errors <= UNITS * eps * sizes).all()):
            return True
        if bool((errors > 3 * eps**0.5 * sizes).any()):
            return False
        if not self.contract.apart:
            self.contract.apart = self._are_apart(cotangent, UNITS * eps * sizes)
        return self.contract.apart

    def _are_apart(self, cotangent: Tensor, allowed: Tensor) -> bool:
        """Whether samples without a cotangent have no gradient, for each pair of samples."""
        index = torch.arange(len(cotangent), device=cotangent.device)
        for bit in range((len(cotangent) - 1).bit_length()):
            for side in (0, 1):
                half = (index >> bit) % 2 == side
                mask = half.view(-1, *[1] * (cotangent.ndim - 1))
                leaked = _norms(self._call(torch.where(mask, cotangent, 0))).to(index.device)
                if bool((leaked > allowed.to(index.device))[~half].any()):
                    return False
        return True

    def _remember(
        self, remainder: Tensor, shares: list[Tensor], called: Gradients, eps: float
    ) -> None:
        """Take what a call gave for the part of its cotangent that is new."""
        norms = remainder.norm(dim=1)
        inverse = torch.where(norms > 0, 1 / norms, torch.zeros_like(norms))
        known = _sum_of(shares, self._gradients) if self._gradients else [None] * len(called)
        new = [_difference(gradient, old) for gradient, old in zip(called, known, strict=True)]
        gradients = [None if gradient is None else _times(inverse, gradient) for gradient in new]
        rounding = eps * _norms(called).to(remainder.device)
        if shares:
            rounding = rounding + self._rounding(shares)
        self._directions.append(inverse[:, None] * remainder)
        self._gradients.append(gradients)
        self._errors.append(inverse * rounding)
        self._room -= remainder.numel() + sum(
            gradient.numel() for gradient in gradients if gradient is not None
        )


def _rows(tensor: Tensor) -> Tensor:
    """(B, ...) as (B, m) float64."""
    return tensor.double().reshape(len(tensor), -1)


def _eps(tensor: Tensor) -> float:
    return torch.finfo(tensor.dtype).eps


def _sum_of(shares: list[Tensor], gradients: list[Gradients]) -> Gradients:
    """Of each input the combination of its gradients, in float64."""
    total: Gradients = []
    for of_input in zip(*gradients, strict=True):
        pairs = zip(shares, of_input, strict=True)
        parts = [_times(share, gradient) for share, gradient in pairs if gradient is not None]
        total.append(torch.stack(parts).sum(0) if parts else None)
    return total


def _times(factors: Tensor, values: Tensor) -> Tensor:
    return factors.to(values.device).view(-1, *[1] * (values.ndim - 1)) * values


def _difference(one: Tensor | None, other: Tensor | None) -> Tensor | None:
    """In float64; None is zero."""
    if one is None or other is None:
        only = other if one is None else one
        return None if only is None else only.double() if one is not None else -only.double()
    return one.double() - other.double()


def _norms(gradients: Gradients) -> Tensor:
    """The norm of all gradients of each sample, (B,) float64."""
    squares = [_rows(gradient).square().sum(1) for gradient in gradients if gradient is not None]
    return (
        torch.stack(squares).sum(0).sqrt()
        if squares
        else torch.zeros(1, dtype=torch.float64, device="cpu")
    )
