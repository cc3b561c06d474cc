"""Pullback of one linearisation of a simulator, called as rarely as possible.

Its contract is that it is linear and that samples are independent. A cotangent that is, for each
sample, a combination of earlier ones then has the same combination of their gradients. The
contract is compared with a call in the first linearisations, and rarely later.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["Contract", "Pullback"]

Gradients = list[Tensor | None]

# Linearisations in which a combination is compared with a call: the first ones, then every so many.
FIRST, EVERY = 2, 64
# Largest number of entries of cotangents and gradients that are kept of one linearisation.
REMEMBERED = 2**22
# Units of rounding by which a combination may differ from a call.
UNITS = 30


@dataclass
class Contract:
    """Record of whether a pullback is linear and its samples are independent.

    Attributes:
        holds: False after a call that contradicts it.
        used: number of linearisations in which a combination was possible.
        independent: whether samples were found to be independent, in a pullback that is linear only
            up to the tolerance of a solver.
    """

    holds: bool = True
    used: int = 0
    independent: bool = False

    def is_due(self) -> bool:
        """Return whether the current linearisation, already counted, compares with a call."""
        return self.used <= FIRST or self.used % EVERY == 0


class Pullback:
    """Pullback from a cotangent (B, ...) to one gradient (B, ...) per input, None for zero.

    Args:
        call: the user's pullback.
        contract: shared by all linearisations of a simulator.
    """

    def __init__(self, call: Callable[[Tensor], Gradients], contract: Contract):
        self._call, self.contract = call, contract
        self._directions: list[Tensor] = []  # (B, m) float64, orthonormal or zero for each sample
        self._gradients: list[Gradients] = []
        self._errors: list[Tensor] = []  # (B,), bounds of the rounding of these gradients
        self._room, self._counted = REMEMBERED, False

    def __call__(self, cotangent: Tensor) -> Gradients:
        """Compute the gradients, by a call or as a combination of earlier ones."""
        if not self.contract.holds or cotangent.numel() > self._room:
            return self._call(cotangent)
        flat, units = _rows(cotangent.detach()), UNITS * _eps(cotangent)
        shares, remainder = self._decompose(flat)
        new = remainder.norm(dim=1) > units * flat.norm(dim=1)
        if self._directions and not bool(new.any()):
            combined = _sum_of(shares, self._gradients)
            # Directions that were nearly combinations of earlier ones have inexact gradients.
            if bool((self._rounding(shares) <= units * _norms(combined).to(flat.device)).all()):
                return self._verified(cotangent, combined)
            return self._call(cotangent)
        gradients = self._call(cotangent)
        self._remember(torch.where(new[:, None], remainder, 0), shares, gradients, _eps(cotangent))
        return gradients

    def _decompose(self, flat: Tensor) -> tuple[list[Tensor], Tensor]:
        """Split a cotangent into shares (B,) of each known direction and a remainder."""
        totals = [torch.zeros_like(flat[:, 0]) for _ in self._directions]
        remainder = flat
        for _ in range(2):  # Gram-Schmidt; the second time removes what rounding left
            for total, direction in zip(totals, self._directions, strict=True):
                share = (remainder * direction).sum(1)
                total += share
                remainder = remainder - share[:, None] * direction
        return totals, remainder

    def _rounding(self, shares: list[Tensor]) -> Tensor:
        """Bound of the rounding errors of a combination, (B,)."""
        parts = [share * error for share, error in zip(shares, self._errors, strict=True)]
        return torch.stack(parts).norm(dim=0)

    def _verified(self, cotangent: Tensor, combined: Gradients) -> Gradients:
        """Return a combination, after comparing it with a call if that is due."""
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
        """Return whether a combination equals a call, up to rounding or a solver's tolerance."""
        sizes, eps = _norms(combined), _eps(cotangent)
        errors = _norms([_difference(a, b) for a, b in zip(combined, called, strict=True)])
        if bool((errors <= UNITS * eps * sizes).all()):
            return True
        if bool((errors > 3 * eps**0.5 * sizes).any()):
            return False
        if not self.contract.independent:
            self.contract.independent = self._are_independent(cotangent, UNITS * eps * sizes)
        return self.contract.independent

    def _are_independent(self, cotangent: Tensor, allowed: Tensor) -> bool:
        """Return whether samples without a cotangent have no gradient, for each pair of samples."""
        # Any two samples differ in some bit of their numbers: halves by each bit, both ways.
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
        """Add the new part of a cotangent as a direction, with its part of the gradients.

        The gradients of the known part are a combination of the known ones, and are subtracted;
        both are then scaled so that the direction has length 1, for each sample.
        """
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
    """Flatten (B, ...) to (B, m) float64."""
    return tensor.double().reshape(len(tensor), -1)


def _eps(tensor: Tensor) -> float:
    return torch.finfo(tensor.dtype).eps


def _sum_of(shares: list[Tensor], gradients: list[Gradients]) -> Gradients:
    """Combine the gradients of each input, in float64."""
    total: Gradients = []
    for of_input in zip(*gradients, strict=True):
        pairs = zip(shares, of_input, strict=True)
        parts = [_times(share, gradient) for share, gradient in pairs if gradient is not None]
        total.append(torch.stack(parts).sum(0) if parts else None)
    return total


def _times(factors: Tensor, values: Tensor) -> Tensor:
    return factors.to(values.device).view(-1, *[1] * (values.ndim - 1)) * values


def _difference(one: Tensor | None, other: Tensor | None) -> Tensor | None:
    """Difference in float64; None stands for zero."""
    if one is None or other is None:
        only = other if one is None else one
        return None if only is None else only.double() if one is not None else -only.double()
    return one.double() - other.double()


def _norms(gradients: Gradients) -> Tensor:
    """Norm of all gradients of each sample, (B,) float64."""
    squares = [_rows(gradient).square().sum(1) for gradient in gradients if gradient is not None]
    return (
        torch.stack(squares).sum(0).sqrt()
        if squares
        else torch.zeros(1, dtype=torch.float64, device="cpu")
    )
