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
        parts: what would be reported of each loss alone; without step size and gain ratio.
        cosines: (m,) float64, between the combined direction and the half-inverse direction of
            each loss; zero where one of them is zero.
        slopes: (m,) float64, :math:`g_i \cdot J_i d`: by how much a short step lowers each
            loss, per unit of step size. Negative where it raises that loss.
        seconds: wall-clock per phase, all losses together.
        step_size: the factor of the combined direction that was applied.
        gain_ratio: achieved over predicted decrease of the sum of the losses, where measured.
    """

    parts: list[StepReport]
    cosines: Tensor
    slopes: Tensor
    seconds: dict[str, float] = field(default_factory=dict)
    step_size: float | None = None
    gain_ratio: float | None = None

    @property
    def loss(self) -> Tensor:
        """The sum of the losses before the step."""
        return torch.stack([part.loss.reshape(()) for part in self.parts]).sum()

    @property
    def smallest_cosine(self) -> float:
        """Positive where the combined direction conflicts with no loss's own."""
        return float(self.cosines.min())

    def __str__(self) -> str:
        losses = ", ".join(f"{float(part.loss):.4g}" for part in self.parts)
        ranks = ", ".join(f"{part.rank} of {min(part.rows, part.columns)}" for part in self.parts)
        text = [f"losses {losses}", f"ranks {ranks}", f"smallest cosine {self.smallest_cosine:.3g}"]
        if self.step_size is not None:
            text.append(f"step size {self.step_size:.3g}")
        if self.gain_ratio is not None:
            text.append(f"gain ratio {self.gain_ratio:.2f}")
        phases = ", ".join(f"{name} {1e3 * value:.1f}" for name, value in self.seconds.items())
        notes = [f"loss {i}: {note}" for i, part in enumerate(self.parts) for note in part.notes]
        return "; ".join([*text, f"ms: {phases}", *notes])


class MultiHIG(JacobianOptimizer):
    r"""One half-inverse direction per loss, combined by a conflict-free operator.

    .. math::
        \theta \leftarrow \theta - \mathrm{lr}\;
        C\big(J_1^{\kappa} g_1, \dots, J_m^{\kappa} g_m\big)

    Each loss has its own prediction with its own joint Jacobian :math:`J_i`: outputs of the same
    simulator, or residuals at different points. Singular values of one loss are thus never
    measured against those of another, and none is drowned: with ConFIG (Liu, Chu, Thuerey, ICLR
    2025, arXiv 2408.11104) the step has the same positive cosine with the directions of all losses.

    Args:
        params: parameters, named parameters or parameter groups.
        lr: factor of the step.
        rcond: singular values ``s <= rcond * s_max`` of each Jacobian are cut; in [0, 1).
        kappa: exponent in [-1, 1].
        operator: maps the directions of all losses, (m, P) float64, to one (P,): an operator of
            :mod:`hig.conflictfree`, an aggregator of TorchJD, or a function; ConFIG by default.
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
            inside, boundary = equation(network, points), network(walls) - wall_values
            return [
                (inside.square().mean(), inside),
                (boundary.square().mean(), boundary),
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
    ) -> "_Combined":
        parts = []
        for loss, prediction in _pairs(outcome):
            own = _reached(uses, prediction) if isinstance(prediction, Tensor) else uses
            parts.append(super()._linearise((loss, prediction), own, parameters, names, clock))
        return _Combined(parts, self.operator, clock)

    def _loss(self, outcome: Pairs) -> Tensor:
        return torch.stack([loss.reshape(()) for loss, _ in outcome]).sum()


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
            combined = self.operator(matrix)
            if not isinstance(combined, Tensor) or combined.shape != matrix.shape[1:]:
                raise ValueError(
                    f"the operator must map directions {tuple(matrix.shape)} to one of shape "
                    f"{tuple(matrix.shape[1:])}, got "
                    f"{tuple(combined.shape) if isinstance(combined, Tensor) else type(combined)}"
                )
            combined = combined.to(matrix)
            norms = matrix.norm(dim=1) * combined.norm()
            self.cosines = torch.where(norms > 0, (matrix @ combined) / norms, 0.0)
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
        parts = [part.report(filter) for part in self.parts]
        return MultiStepReport(parts, self.cosines, self.slopes, self.clock.seconds)


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
