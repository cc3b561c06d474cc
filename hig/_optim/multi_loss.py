"""Linearisations of several losses, with the interface of that of a single loss."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from hig._spectral.decomposition import GramSpectrum
from hig._spectral.filters import SpectralFilter
from hig._step.linearisation import Linearisation, QuadraticModel
from hig._step.objective import Objective
from hig._step.reports import MultiStepReport
from hig._torch.host import PhaseClock
from hig._torch.linalg import eigenvectors, with_cpu_fallback
from hig._torch.ranks import Ranks
from hig.conflictfree._gradient_operator import Operator, combine

__all__ = ["SeparatePredictions", "SharedPrediction"]


@dataclass
class SharedPrediction:
    """One decomposed Jacobian and the gradients of several losses in its outputs.

    Args:
        linearisation: the Jacobian, linearised for the sum of the losses.
        losses: (m,), without a graph.
        gradients: gradients of the losses in the outputs, (m, n) float64.
        operator: combines the directions.
    """

    linearisation: Linearisation
    losses: Tensor
    gradients: Tensor
    operator: Operator
    cosines: Tensor = field(init=False)  # both of the last step
    slopes: Tensor = field(init=False)

    def step(self, filter: SpectralFilter) -> tuple[list[Tensor], Tensor]:
        """Return the combined direction per parameter, and the change of the outputs (n,)."""
        steps = [self.linearisation.step(filter, gradient) for gradient in self.gradients]
        ranks = _ranks(self.linearisation)
        with self.linearisation.clock.phase("operator"):
            changes = torch.stack([change for _, change in steps])
            # d_i · M⁻¹ d_j = g_i · J d_j: inner products in the metric without forming it.
            gram = self.gradients @ changes.T
            with ranks.agreement():
                found = _weights_and_cosines(0.5 * (gram + gram.T), self.operator)
            # An operator may draw random numbers, others on each process rank.
            weights, self.cosines = ranks.first_of(found)
            self.slopes = gram @ weights
            directions = [
                sum(weight * part for weight, part in zip(weights, parts, strict=True))
                for parts in zip(*(directions for directions, _ in steps), strict=True)
            ]
        return directions, weights @ changes

    @property
    def clock(self) -> PhaseClock:
        """Clock of the step."""
        return self.linearisation.clock

    def output_change(self, directions: Sequence[Tensor]) -> Tensor:
        """Return J d (n,) for one direction per parameter."""
        return self.linearisation.output_change(directions)

    def model(self, output_change: Tensor) -> QuadraticModel:
        """Return the model of the sum of the losses."""
        return self.linearisation.model(output_change)

    def rounding(self) -> float:
        """Return the change of the sum of the losses by a rounding of outputs and parameters."""
        return self.linearisation.rounding()

    @property
    def objectives(self) -> list[Objective]:
        """The objective of the sum of the losses, in a list."""
        return self.linearisation.objectives

    @property
    def loss(self) -> Tensor:
        """Sum of the losses, without a graph."""
        return self.linearisation.loss

    def spectra(self) -> list[GramSpectrum]:
        """See :meth:`hig._step.linearisation.Linearisation.spectra`."""
        return self.linearisation.spectra()

    def report(self, filter: SpectralFilter) -> MultiStepReport:
        """Return the report of a step with this filter, as far as it is known now."""
        parts = [self.linearisation.report(filter)]
        seconds = self.linearisation.clock.seconds
        return MultiStepReport(self.losses, parts, self.cosines, self.slopes, seconds)


@dataclass
class SeparatePredictions:
    """Several decomposed Jacobians as one: their directions are combined, their losses added.

    Args:
        parts: the Jacobian of each loss.
        operator: combines the directions.
        clock: clock of the step.
    """

    parts: list[Linearisation]
    operator: Operator
    clock: PhaseClock
    cosines: Tensor = field(init=False)  # both of the last step
    slopes: Tensor = field(init=False)

    def step(self, filter: SpectralFilter) -> tuple[list[Tensor], list[Tensor]]:
        """Return the combined direction per parameter, and the change of each prediction (n_i,)."""
        directions_of = [part.step(filter)[0] for part in self.parts]
        with self.clock.phase("operator"):
            matrix = torch.stack(
                [torch.cat([d.flatten() for d in parts]) for parts in directions_of]
            )
            ranks = _ranks(self.parts[0])
            with ranks.agreement():
                found = _combine(matrix, self.operator)
            combined, self.cosines = ranks.first_of(found)
        sizes = [direction.numel() for direction in directions_of[0]]
        pieces = zip(combined.split(sizes), directions_of[0], strict=True)
        directions = [piece.view_as(like) for piece, like in pieces]
        with self.clock.phase("operator"):
            changes = self.output_change(directions)
            slopes = [
                part.objective.flat_gradient @ change
                for part, change in zip(self.parts, changes, strict=True)
            ]
            self.slopes = torch.stack(slopes)
        return directions, changes

    def output_change(self, directions: Sequence[Tensor]) -> list[Tensor]:
        """Return the change of each prediction (n_i,) along one direction per parameter."""
        return [part.output_change(directions) for part in self.parts]

    def rounding(self) -> float:
        """Return the change of the sum of the losses by a rounding of outputs and parameters."""
        return sum(part.rounding() for part in self.parts)

    def model(self, output_change: list[Tensor]) -> QuadraticModel:
        """Return the model of the sum of the losses."""
        pairs = zip(self.parts, output_change, strict=True)
        models = [part.model(change) for part, change in pairs]
        loss, slope, curvature, _, length = (sum(numbers) for numbers in zip(*models, strict=True))
        return QuadraticModel(loss, slope, curvature, max(m.largest for m in models), length)

    @property
    def objectives(self) -> list[Objective]:
        """The objective of each loss."""
        return [part.objective for part in self.parts]

    @property
    def loss(self) -> Tensor:
        """Sum of the losses, without a graph."""
        return torch.stack([part.loss.reshape(()) for part in self.parts]).sum()

    def spectra(self) -> list[GramSpectrum]:
        """See :meth:`hig._step.linearisation.Linearisation.spectra`."""
        return [source for part in self.parts for source in part.spectra()]

    def report(self, filter: SpectralFilter) -> MultiStepReport:
        """Return the report of a step with this filter, as far as it is known now."""
        losses = torch.stack([part.loss.reshape(()) for part in self.parts])
        parts = [part.report(filter) for part in self.parts]
        return MultiStepReport(losses, parts, self.cosines, self.slopes, self.clock.seconds)


def _ranks(linearisation: Linearisation) -> Ranks:
    """Return the process ranks that step together; this one alone if the step is not shared."""
    split = linearisation.objective.split
    return Ranks() if split is None else split.ranks


def _combine(matrix: Tensor, operator: Operator) -> tuple[Tensor, Tensor]:
    """Return the direction (P,) for a matrix (m, P), and its cosines (m,) with the rows."""
    combined = combine(operator, matrix).to(matrix)
    norms = matrix.norm(dim=1) * combined.norm()
    return combined, torch.where(norms > 0, (matrix @ combined) / norms, 0.0)


def _weights_and_cosines(gram: Tensor, operator: Operator) -> tuple[Tensor, Tensor]:
    """Return weights (m,) of directions with inner products (m, m), and cosines (m,).

    The operator receives coordinates: rows with these inner products. With gram = Q Λ Qᵀ they are
    the rows of Q Λ^½; coordinates c of the result are those of the weights Q Λ^-½ c.
    """
    values, vectors = with_cpu_fallback(eigenvectors, gram, [])
    lengths = values.clamp_min(0).sqrt()
    combined, cosines = _combine(vectors * lengths, operator)
    # Coordinates that no direction spans are zero up to rounding, which must not be amplified.
    reached = lengths > len(gram) * torch.finfo(gram.dtype).eps ** 0.5 * lengths.max()
    weights = torch.where(reached, combined / torch.where(reached, lengths, 1.0), 0.0)
    return vectors @ weights, cosines
