"""Rows of a step that are not the outputs of its closure, and the outputs behind them."""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

__all__ = ["FewerRows", "RowMap", "orthonormal_directions"]


class FewerRows(NamedTuple):
    """Counts of a step with fewer rows than outputs.

    Attributes:
        samples: B.
        rows: rows of each sample.
        outputs: D, outputs of each.
        exact: whether the step is that of all outputs: the rows are those of its controls.
    """

    samples: int
    rows: int
    outputs: int
    exact: bool

    def __str__(self) -> str:
        of = f"controls for {self.outputs}" if self.exact else f"of {self.outputs}"
        return f"{self.samples} samples x {self.rows} {of} outputs"


@dataclass(frozen=True)
class RowMap:
    r"""Outputs y of a closure behind other rows of a step, :math:`S W^{1/2} y`.

    Attributes:
        prediction: y, (B, ...) with its graph, D outputs per sample.
        gradient: of the loss, same shape, with its graph if the curvature is needed.
        directions: S, (B, k, D) orthonormal, in the dtype of the prediction; None for all outputs.
        exact: whether no step changes the outputs across these directions.
        roots: square roots of the weights W, (B, D) in the dtype of the prediction; None for 1.
    """

    prediction: Tensor
    gradient: Tensor
    directions: Tensor | None = None
    exact: bool = False
    roots: Tensor | None = None

    def weighted_gradient(self) -> Tensor:
        """Return the gradient of the loss in the weighted outputs, (B, D) float64."""
        gradient = self.gradient.detach().double().reshape(len(self.prediction), -1)
        return gradient if self.roots is None else _over(gradient, self.roots)

    def weigh(self, change: Tensor) -> Tensor:
        """Return a change of all outputs (B * D,) float64 times the roots of their weights."""
        return change if self.roots is None else self.roots.double().flatten() * change

    def lift(self, change: Tensor) -> Tensor:
        """Return the change of all outputs (B * D,) that these rows see, (B * k,), both float64."""
        if self.directions is not None:
            change = change.view(*self.directions.shape[:2], 1)
            change = self.directions.double().mT @ change
        if self.roots is not None:
            change = _over(change.reshape(self.roots.shape), self.roots)
        return change.flatten()


def _over(values: Tensor, roots: Tensor) -> Tensor:
    """Return values over roots of weights, float64; 0 where the weight is 0."""
    roots = roots.double()
    return torch.where(roots > 0, values / torch.where(roots > 0, roots, 1), 0)


def orthonormal_directions(gradient: Tensor, random: Tensor) -> Tensor:
    """Return orthonormal directions (B, k, D) float64, the first along the gradient of each sample.

    Args:
        gradient: (B, D); a sample whose gradient is zero has random directions alone.
        random: (B, D, k) float64, independent normal numbers; k is at most D.
    """
    gradient = gradient.double()
    # By the largest entry first: squares of tiny numbers are zero.
    largest = gradient.abs().amax(1, keepdim=True)
    unit = gradient / largest
    unit = unit / unit.norm(dim=1, keepdim=True)
    first = torch.where(largest > 0, unit, random[:, :, 0])
    basis, triangle = torch.linalg.qr(torch.cat([first.unsqueeze(-1), random[:, :, 1:]], -1))
    signs = torch.diagonal(triangle, dim1=1, dim2=2).sign()
    return (basis * signs.unsqueeze(1)).mT
