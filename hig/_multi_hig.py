r"""Half-inverse gradients for several losses, combined by a conflict-free operator."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from hig._capture import LayerUse
from hig._direction import Linearisation
from hig._optimizer import JacobianOptimizer
from hig._report import PhaseClock, StepReport
from hig._spectral import HalfInverse, SpectralFilter
from hig.conflictfree import ConFIG_update

__all__ = ["MultiHIG", "MultiStepReport"]

Operator = Callable[[Tensor], Tensor]
Pairs = Sequence[tuple[Tensor, Tensor]]


@dataclass
class MultiStepReport:
    r"""One step for several losses in numbers.

    Attributes:
        losses: (m,), before the step.
        parts: the report of each joint Jacobian: of one where the losses share their prediction,
            else one per loss; without step size and gain ratio.
        cosines: (m,) float64, between the combined direction and the half-inverse direction of
            each loss, as the operator sees them; zero where one of them is zero.
        slopes: (m,) float64, :math:`g_i \cdot J_i d`: by how much a short step lowers each
            loss, per unit of step size. Negative where it raises that loss.
        seconds: wall-clock per phase, all losses together.
        step_size: the factor of the combined direction that was applied.
        gain_ratio: achieved over predicted decrease of the sum of the losses, where measured.
    """

    losses: Tensor
    parts: list[StepReport]
    cosines: Tensor
    slopes: Tensor
    seconds: dict[str, float] = field(default_factory=dict)
    step_size: float | None = None
    gain_ratio: float | None = None

    @property
    def loss(self) -> Tensor:
        """The sum of the losses before the step."""
        return self.losses.sum()

    @property
    def smallest_cosine(self) -> float:
        """Positive where the combined direction conflicts with no loss's own."""
        return float(self.cosines.min())

    def __str__(self) -> str:
        losses = ", ".join(f"{loss:.4g}" for loss in self.losses.tolist())
        ranks = ", ".join(f"{part.rank} of {min(part.rows, part.columns)}" for part in self.parts)
        text = [f"losses {losses}", f"ranks {ranks}", f"smallest cosine {self.smallest_cosine:.3g}"]
        if self.step_size is not None:
            text.append(f"step size {self.step_size:.3g}")
        if self.gain_ratio is not None:
            text.append(f"gain ratio {self.gain_ratio:.2f}")
        phases = ", ".join(f"{name} {1e3 * value:.1f}" for name, value in self.seconds.items())
        notes = [note for part in self.parts for note in part.notes]
        return "; ".join([*text, f"ms: {phases}", *notes])


class MultiHIG(JacobianOptimizer):
    r"""One half-inverse direction per loss, combined by a conflict-free operator.

    .. math::
        \theta \leftarrow \theta - \mathrm{lr}\;
        C\big(J_1^{\kappa} g_1, \dots, J_m^{\kappa} g_m\big)

    C is a conflict-free operator, ConFIG by default (Liu, Chu, Thuerey, ICLR 2025, arXiv
    2408.11104). There are two ways to give the losses:

    - *One prediction*, which all of them are computed from, such as the residuals of all conditions
      as rows of one tensor: there is one joint Jacobian J, and with
      :math:`J = U S V^T` each loss has the direction
      :math:`d_i = V S^\kappa U^T g_i = M \nabla L_i` with one metric
      :math:`M = V S^{\kappa - 1} V^T`. The operator works in that metric, so that what conflicts
      with no direction raises no loss: a short ConFIG step lowers all of them.
    - *A prediction each*: every loss has its own Jacobian :math:`J_i` and spectrum, and none is
      measured against another. Metrics differ then, and a step that agrees with all directions may
      still raise a loss; ``report.slopes`` tells.

    Args:
        params: parameters, named parameters or parameter groups.
        lr: factor of the step.
        rcond: singular values ``s <= rcond * s_max`` of each Jacobian are cut; in [0, 1).
        kappa: exponent in [-1, 1].
        operator: maps the directions of all losses, (m, P) float64, to one (P,): an operator of
            :mod:`hig.conflictfree`, an aggregator of TorchJD, or a function. With one prediction it
            is given coordinates (m, m) instead, which have the inner products of the metric.
        engine: as in :class:`hig.HIG`.
        method: as in :class:`hig.HIG`.
        step_rule: as in :class:`hig.HIG`; "trust" and "line_search" look at the sum of the losses.
        chunk: as in :class:`hig.HIG`.

    Attributes:
        report: the :class:`MultiStepReport` of the last step, None before the first.

    Raises:
        ValueError: if an argument lies outside its range.

    Example::

        optimizer = hig.MultiHIG(network.parameters(), lr=1.0)

        def closure():
            residuals = torch.cat([equation(network, points), network(walls) - wall_values])
            inside, boundary = residuals.split([len(points), len(walls)])
            return [
                (inside.square().mean(), residuals),
                (boundary.square().mean(), residuals),
            ]

        optimizer.step(closure)
    """

    def __init__(
        self,
        params: Iterable,
        lr: float = 1.0,
        rcond: float = 1e-6,
        kappa: float = -0.5,
        operator: Operator = ConFIG_update,
        *,
        engine: str = "auto",
        method: str = "auto",
        step_rule: str = "fixed",
        chunk: int | None = None,
    ):
        filter = HalfInverse(kappa=kappa, rcond=rcond)
        super().__init__(params, lr, filter, engine, method, step_rule, chunk)
        if not callable(operator):
            raise TypeError(
                f"operator must map (m, P) to (P,), got {type(operator).__name__}; "
                "hig.conflictfree has some"
            )
        self.operator = operator

    def __getstate__(self) -> dict:
        return {**super().__getstate__(), "operator": self.operator}

    def _linearise(
        self,
        outcome: Pairs,
        uses: Sequence[LayerUse],
        parameters: Sequence[Tensor],
        names: Sequence[str],
        clock: PhaseClock,
    ) -> "_OnePrediction | _Combined":
        pairs = _pairs(outcome)
        prediction = pairs[0][1]
        if len(pairs) > 1 and all(other is prediction for _, other in pairs):
            whole = super()._linearise(
                (self._loss(pairs), prediction), uses, parameters, names, clock
            )
            gradients = [_own_gradient(i, loss, prediction) for i, (loss, _) in enumerate(pairs)]
            losses = torch.stack([loss.detach().reshape(()) for loss, _ in pairs])
            return _OnePrediction(whole, losses, torch.stack(gradients), self.operator)
        parts = []
        for loss, prediction in pairs:
            own = _reached(uses, prediction) if isinstance(prediction, Tensor) else uses
            parts.append(super()._linearise((loss, prediction), own, parameters, names, clock))
        return _Combined(parts, self.operator, clock)

    def _loss(self, outcome: Pairs) -> Tensor:
        return torch.stack([loss.reshape(()) for loss, _ in outcome]).sum()


@dataclass
class _OnePrediction:
    """One decomposed Jacobian and the gradients of several losses in its outputs."""

    whole: Linearisation
    losses: Tensor
    gradients: Tensor  # (m, n) float64
    operator: Operator
    cosines: Tensor | None = None
    slopes: Tensor | None = None

    def step(self, filter: SpectralFilter) -> tuple[list[Tensor], Tensor]:
        """The combined direction per parameter, and the change of the outputs (n,)."""
        found = [self.whole.step(filter, gradient) for gradient in self.gradients]
        with self.whole.clock.phase("operator"):
            changes = torch.stack([change for _, change in found])
            gram = self.gradients @ changes.T  # of the directions, in the metric; symmetric
            weights, self.cosines = _weights(0.5 * (gram + gram.T), self.operator)
            self.slopes = gram @ weights
            directions = [
                sum(weight * part for weight, part in zip(weights, parts, strict=True))
                for parts in zip(*(directions for directions, _ in found), strict=True)
            ]
        return directions, weights @ changes

    def output_change(self, directions: Sequence[Tensor]) -> Tensor:
        """The change of the outputs (n,) along one direction per parameter."""
        change = self.whole.output_change(directions)
        self.slopes = self.gradients @ change
        return change

    def model(self, output_change: Tensor) -> list[float]:
        """Loss, slope and curvature of the sum of the losses."""
        return self.whole.model(output_change)

    @property
    def loss(self) -> Tensor:
        """The sum of the losses, without a graph."""
        return self.whole.loss

    def report(self, filter: SpectralFilter) -> MultiStepReport:
        """The report of a step with this filter, as far as it is known now."""
        parts = [self.whole.report(filter)]
        seconds = self.whole.clock.seconds
        return MultiStepReport(self.losses, parts, self.cosines, self.slopes, seconds)


@dataclass
class _Combined:
    """Several decomposed Jacobians as one: their directions are combined, their losses added."""

    parts: list[Linearisation]
    operator: Operator
    clock: PhaseClock
    cosines: Tensor | None = None
    slopes: Tensor | None = None

    def step(self, filter: SpectralFilter) -> tuple[list[Tensor], list[Tensor]]:
        """The combined direction per parameter, and the change of each prediction (n_i,)."""
        found = [part.step(filter)[0] for part in self.parts]
        with self.clock.phase("operator"):
            matrix = torch.stack([torch.cat([d.flatten() for d in own]) for own in found])
            combined, self.cosines = _combine(matrix, self.operator)
        sizes = [direction.numel() for direction in found[0]]
        pieces = zip(combined.split(sizes), found[0], strict=True)
        directions = [piece.view_as(like) for piece, like in pieces]
        return directions, self.output_change(directions)

    def output_change(self, directions: Sequence[Tensor]) -> list[Tensor]:
        """The change of each prediction (n_i,) along one direction per parameter."""
        with self.clock.phase("operator"):
            changes = [part.output_change(directions) for part in self.parts]
            slopes = [
                part.computation.flat_gradient @ change
                for part, change in zip(self.parts, changes, strict=True)
            ]
            self.slopes = torch.stack(slopes)
        return changes

    def model(self, output_changes: list[Tensor]) -> list[float]:
        """Loss, slope and curvature of the sum of the losses."""
        models = [part.model(c) for part, c in zip(self.parts, output_changes, strict=True)]
        return [sum(numbers) for numbers in zip(*models, strict=True)]

    @property
    def loss(self) -> Tensor:
        """The sum of the losses, without a graph."""
        return torch.stack([part.loss.reshape(()) for part in self.parts]).sum()

    def report(self, filter: SpectralFilter) -> MultiStepReport:
        """The report of a step with this filter, as far as it is known now."""
        losses = torch.stack([part.loss.reshape(()) for part in self.parts])
        parts = [part.report(filter) for part in self.parts]
        return MultiStepReport(losses, parts, self.cosines, self.slopes, self.clock.seconds)


def _combine(matrix: Tensor, operator: Operator) -> tuple[Tensor, Tensor]:
    """Direction (P,) for a matrix (m, P), and its cosines (m,) with the rows."""
    combined = operator(matrix)
    if not isinstance(combined, Tensor) or combined.shape != matrix.shape[1:]:
        raise ValueError(
            f"the operator must map directions {tuple(matrix.shape)} to one of shape "
            f"{tuple(matrix.shape[1:])}, got "
            f"{tuple(combined.shape) if isinstance(combined, Tensor) else type(combined)}"
        )
    combined = combined.to(matrix)
    norms = matrix.norm(dim=1) * combined.norm()
    return combined, torch.where(norms > 0, (matrix @ combined) / norms, 0.0)


def _weights(gram: Tensor, operator: Operator) -> tuple[Tensor, Tensor]:
    """Weights (m,) of directions with given inner products (m, m), and cosines (m,).

    The operator sees coordinates: rows with these inner products.
    """
    values, vectors = torch.linalg.eigh(gram)
    lengths = values.clamp_min(0).sqrt()
    combined, cosines = _combine(vectors * lengths, operator)
    # What no direction reaches, an operator cannot ask for; rounding can.
    reached = lengths > len(gram) * torch.finfo(gram.dtype).eps ** 0.5 * lengths.max()
    weights = torch.where(reached, combined / torch.where(reached, lengths, 1.0), 0.0)
    return vectors @ weights, cosines


def _own_gradient(index: int, loss: Tensor, prediction: Tensor) -> Tensor:
    """Gradient (n,) float64 of one of several losses in the outputs; zero where it has none."""
    if not loss.requires_grad:
        raise ValueError(
            f"loss {index} carries no gradient graph; compute it from the prediction without "
            "detach, item or no_grad"
        )
    (gradient,) = torch.autograd.grad(
        loss, prediction, retain_graph=True, allow_unused=True, materialize_grads=True
    )
    return gradient.detach().double().flatten()


def _pairs(outcome: Pairs) -> Pairs:
    """Check that the closure returned (loss, prediction) pairs."""
    pairs = list(outcome) if isinstance(outcome, tuple | list) else []
    if not pairs or not all(isinstance(pair, tuple | list) and len(pair) == 2 for pair in pairs):
        raise ValueError(
            "the closure must return a list of (loss, prediction) pairs, got "
            f"{type(outcome).__name__}; for a single loss return [(loss, prediction)]"
        )
    return pairs


def _reached(uses: Sequence[LayerUse], prediction: Tensor) -> list[LayerUse]:
    """The layer calls that a prediction came from: others may have another batch axis."""
    waiting = [prediction.grad_fn] if prediction.grad_fn is not None else []
    seen = set(waiting)
    while waiting:
        for following, _ in waiting.pop().next_functions:
            if following is not None and following not in seen:
                seen.add(following)
                waiting.append(following)
    return [use for use in uses if use.edge.node in seen]
