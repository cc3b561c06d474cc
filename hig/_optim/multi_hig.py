"""Half-inverse gradients for several losses, combined by a conflict-free operator."""

from collections.abc import Callable, Sequence
from typing import Any, Literal

import torch
from torch import Tensor
from torch.optim.optimizer import ParamsT

from hig._jacobian.capture import Captured
from hig._jacobian.engine import Engine
from hig._optim.multi_loss import SeparatePredictions, SharedPrediction
from hig._spectral.filters import HalfInverse
from hig._spectral.lanczos import Lanczos
from hig._step.closure import explained
from hig._step.linearisation import Linearisation
from hig._step.objective import Objective, StepContext, check_pair, expect_finite
from hig._step.optimizer import JacobianOptimizer
from hig._step.options import StepOptions
from hig._step.reports import MultiStepReport
from hig._step.step_rules import StepRule
from hig._torch.autograd_graph import origin, plain, reachable_nodes
from hig._torch.checksums import digest
from hig._torch.host import DeferredChecks
from hig._torch.ranks import ProcessGroup
from hig.conflictfree import ConFIG_update
from hig.conflictfree._gradient_operator import Operator
from hig.conflictfree._validation import check_operator
from hig.errors import NonFiniteError, described

__all__ = ["MultiHIG"]

Pairs = Sequence[tuple[Tensor, Tensor]]

_SAME_LOSSES = "return the same losses, of predictions shared in the same way, on every process"


class MultiHIG(JacobianOptimizer):
    r"""One half-inverse direction per loss, combined by a conflict-free operator.

    .. math::
        \theta \leftarrow \theta - \mathrm{lr}\;
        C\big(J_1^{\kappa} g_1, \dots, J_m^{\kappa} g_m\big)

    C is a conflict-free operator, ConFIG by default (Liu, Chu, Thuerey, ICLR 2025, arXiv
    2408.11104). There are two forms of the losses:

    - *One prediction* for all of them, such as the residuals of all conditions as rows of one
      tensor: there is one joint Jacobian J, and with :math:`J = U S V^T` each loss has the
      direction :math:`d_i = V S^\kappa U^T g_i = M \nabla L_i` with one metric
      :math:`M = V S^{\kappa - 1} V^T`. The operator works in that metric, so that a step that
      conflicts with no direction raises no loss: a short ConFIG step lowers all of them.
    - *A prediction each*: every loss has its own Jacobian :math:`J_i` and spectrum. The metrics
      differ then, and a step that agrees with all directions may still raise a loss;
      ``report.slopes`` shows this.

    All other arguments are those of :class:`hig.HIG`.

    Args:
        rcond: singular values ``s <= rcond * s_max`` of each Jacobian are cut; in [0, 1), or
            "auto".
        operator: maps the directions of all losses, (m, P) float64, to one (P,): an operator of
            :mod:`hig.conflictfree`, an aggregator of TorchJD, or a function. With one prediction it
            receives coordinates (m, m) instead, which have the inner products of the metric.
            Operators with a memory are refused: the length of directions changes with the batch.
        step_rule: see :class:`hig.HIG`; "trust" and "line_search" use the sum of the losses.
        reduction: see :class:`hig.HIG`; with "mean" each loss is a mean over all samples of its
            prediction. Means over some rows of one prediction, such as those of a boundary, are
            means over the rows of all processes only if each has the same share of them: take "sum"
            otherwise, and divide by their number yourself.

    Attributes:
        report: the :class:`MultiStepReport` of the last step, None before the first.

    Raises:
        TypeError: if ``operator`` is not an operator, or has a memory.
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

    report: MultiStepReport | None

    def __init__(
        self,
        params: ParamsT,
        lr: float = 1.0,
        rcond: float | Literal["auto"] = 1e-6,
        kappa: float = -0.5,
        operator: Operator = ConFIG_update,
        *,
        engine: str | Engine = "auto",
        method: str | Lanczos = "auto",
        step_rule: str | StepRule = "fixed",
        chunk: int | None = None,
        process_group: ProcessGroup = "auto",
        reduction: str = "mean",
    ):
        filter = HalfInverse(kappa=kappa, rcond=rcond)
        options = StepOptions(
            engine=engine, method=method, step_rule=step_rule, chunk=chunk,
            process_group=process_group, reduction=reduction,
        )  # fmt: skip
        super().__init__(params, lr, filter, options)
        check_operator(operator)
        self.operator = operator

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "operator": self.operator}

    def _linearise(  # type: ignore[override]  # both have the interface of a Linearisation
        self, outcome: Any, captured: Captured, step: StepContext
    ) -> SharedPrediction | SeparatePredictions:
        checks = DeferredChecks()
        with step.agreement():
            pairs = _check_pairs(outcome, checks)
            prediction = pairs[0][1]
            gradients = []
            if len(pairs) > 1 and all(other is prediction for _, other in pairs):
                # Each loss first, so that an error names its number.
                gradients = [
                    _own_gradient(index, loss, prediction, checks)
                    for index, (loss, _) in enumerate(pairs)
                ]
            checks.settle()
        if step.ranks is not None:
            step.ranks.agree_on(
                {
                    "the number of losses": (len(pairs), _SAME_LOSSES),
                    "the number of losses with one prediction": (len(gradients), _SAME_LOSSES),
                }
            )
        if gradients:
            total = self._loss(pairs), prediction
            linearisation = super()._linearise(total, Captured(captured.uses), step)
            losses = torch.stack([loss.detach().reshape(()) for loss, _ in pairs])
            whole = _whole_batch(losses, torch.stack(gradients), linearisation, self._options)
            return SharedPrediction(linearisation, *whole, self.operator)
        parts = []
        for index, pair in enumerate(pairs):
            try:
                parts.append(super()._linearise(pair, _behind(captured, pair[1]), step))
            except (NonFiniteError, ValueError) as error:
                raise type(error)(f"for loss {index} of {len(pairs)}: {error}") from error
        return SeparatePredictions(parts, self.operator, step.clock)

    def _share(self, objectives: Sequence[Objective]) -> Callable[[Any], Tensor]:
        if len(objectives) == 1:  # that of the sum
            return super()._share(objectives)
        weights = [objective.weight for objective in objectives]
        if all(weight == 1 for weight in weights):
            return self._loss

        def share(outcome: Any) -> Tensor:
            losses = [plain(loss, "a loss").detach().double().reshape(()) for loss, _ in outcome]
            return sum(weight * loss for weight, loss in zip(weights, losses, strict=True))

        return share

    def _settings(self) -> int:
        operator = getattr(self.operator, "__name__", type(self.operator).__name__)
        return digest(super()._settings(), operator)

    def _loss(self, outcome: Any) -> Tensor:
        return torch.stack([plain(loss, "a loss").reshape(()) for loss, _ in outcome]).sum()

    def _predictions(self, outcome: Any) -> list[Tensor]:
        predictions = [prediction for _, prediction in outcome]
        if all(other is predictions[0] for other in predictions):
            predictions = predictions[:1]  # one objective, that of the sum
        return [plain(prediction, "a prediction") for prediction in predictions]


def _whole_batch(
    losses: Tensor, gradients: Tensor, linearisation: Linearisation, options: StepOptions
) -> tuple[Tensor, Tensor]:
    """Return losses (m,) and their gradients (m, n) of the samples of all process ranks.

    Args:
        losses: (m,) of this process.
        gradients: (m, rows) float64 of this process.
        linearisation: the Jacobian of all; it gets a note if means cannot be joined as they are.
        options: options of the step.
    """
    split, weight = linearisation.objective.split, linearisation.objective.weight
    if split is None:
        return losses, gradients
    samples = split.samples[split.ranks.rank]
    touched = (gradients.view(len(losses), samples, -1) != 0).any(2).sum(1)
    by_rank = torch.stack(split.ranks.every(torch.stack([weight * losses.double(), touched])))
    if options.reduction == "mean":
        # Of each rank times its weight: the same share of its samples everywhere.
        shares = by_rank[:, 1] / by_rank.new_tensor(split.samples)[:, None]
        apart = (shares != shares[0]).any(0).nonzero().flatten().tolist()
        linearisation.notes.extend(
            f"loss {index} depends on {' and '.join(str(int(n)) for n in by_rank[:, 1, index])} of "
            f"the {' and '.join(map(str, split.samples))} samples of the process ranks, which are "
            "weighed by all their samples: if it is a mean over a part of them, take "
            "reduction='sum', and divide by their number on all ranks"
            for index in apart
        )
    total = by_rank[:, 0].sum(0).to(losses)
    return total, split.gather_concatenated((weight * gradients).T.contiguous()).T


def _own_gradient(index: int, loss: Tensor, prediction: Tensor, checks: DeferredChecks) -> Tensor:
    """Return the gradient (n,) float64 of one of several losses in the outputs, or zeros."""
    with explained():
        (gradient,) = torch.autograd.grad(
            loss, origin(prediction), retain_graph=True, allow_unused=True, materialize_grads=True
        )
    expect_finite(f"the gradient of loss {index}", gradient, checks)
    return gradient.detach().double().flatten()


def _check_pairs(outcome: Any, checks: DeferredChecks) -> Pairs:
    """Return the (loss, prediction) pairs of the closure, after checking each."""
    pairs = list(outcome) if isinstance(outcome, tuple | list) else []
    wrong = [i for i, p in enumerate(pairs) if not isinstance(p, tuple | list) or len(p) != 2]
    if wrong or not pairs:
        shown = described(outcome)
        if wrong:
            shown += f" whose element {wrong[0]} is {described(pairs[wrong[0]])}"
        raise ValueError(
            f"the closure must return a list of (loss, prediction) pairs, got {shown}; pair each "
            "loss with the tensor that it was computed from, a single loss as "
            "[(loss, prediction)]"
        )
    checked: list[tuple[Tensor, Tensor]] = []
    before = None
    for index, (loss_like, prediction) in enumerate(pairs):
        names = f"loss {index}", f"prediction {index}"
        known = prediction is before
        standing = checked[-1][1] if known else plain(prediction, names[1])
        loss, before = plain(loss_like, names[0]), prediction
        check_pair(loss, standing, checks, names, known)
        checked.append((loss, standing))
    return checked


def _behind(captured: Captured, prediction: Tensor) -> Captured:
    """Return the layer calls behind a prediction: others may have another batch axis."""
    nodes = reachable_nodes(prediction)
    return Captured([use for use in captured.uses if use.edge.node in nodes])
