"""Optimisers with a power filter: half-inverse gradients and Gauss-Newton."""

from typing import Literal

from torch.optim.optimizer import ParamsT

from hig._jacobian.engine import Engine
from hig._spectral.filters import HalfInverse
from hig._spectral.lanczos import Lanczos
from hig._step.damped_steps import DampedSteps
from hig._step.linearisation import Linearisation
from hig._step.optimizer import JacobianOptimizer
from hig._step.options import StepOptions
from hig._step.reports import StepReport
from hig._step.sketch import Directions
from hig._step.step_rules import StepRule
from hig._step.trial_step import Attempts
from hig._torch.ranks import ProcessGroup

__all__ = ["HIG", "GaussNewton"]


# Steeper filters than the half-inverse are damped at first.
_DAMPED_BELOW = -0.5


class HIG(JacobianOptimizer):
    r"""Half-inverse gradients: :math:`\theta \leftarrow \theta - \mathrm{lr}\, J^\kappa g`.

    Schnell, Holl, Thuerey, ICLR 2022, arXiv 2203.10131. J is the joint Jacobian of network and
    simulator over the batch, g the gradient of the loss with respect to the outputs. By default the
    step rule finds the length of the step, and the cut-off follows from the rounding of J.
    A given ``lr`` alone is that of the paper: the step is ``step_rule="fixed"`` then, whose
    published settings are an ``lr`` and an ``rcond`` per problem.

    Args:
        params: parameters, named parameters or parameter groups. Groups may differ in ``lr`` with
            ``step_rule="fixed"`` alone.
        lr: factor of the step, 1 unless given. "trust" knows the length; with "fixed" it is in
            units of the loss: a sum instead of a mean over the batch needs a smaller one.
        rcond: singular values ``s <= rcond * s_max`` are cut; in [0, 1). "auto" chooses it in
            every step, just above the rounding of the parameters and the prediction; 3e-5 with
            ``method="lanczos"``, and at least 1e-4 with a sketch.
        kappa: exponent in [-1, 1].
        engine: "auto" (layer by layer if that is exact, else row by row), "layerwise" (refuses
            layers without an exact result) or "rows" (any differentiable program); or a custom
            engine, an object with ``jacobian(forward)``.
        method: "gram", "svd", or "auto": Gram matrix in float64, but the singular value
            decomposition for a float64 Jacobian of moderate size with a small ``rcond``. "lanczos",
            or :class:`hig.Lanczos` with its settings, uses products with the Jacobian alone, for
            tens of thousands of rows; the report estimates the error.
        step_rule: "trust" (a share of the Cauchy step, judged by this batch and by later ones;
            steeper filters than the half-inverse are damped at first), "line_search" or "fixed"; or
            a custom rule, an object with ``take(trial)``. None is "trust", and "fixed" if ``lr`` is
            given, for all parameters or for a group.
        momentum: :math:`\mu` in [0, 1), None for 0, with a sketch for 0.97; the direction is
            :math:`d_k = J^\kappa g + \mu d_{k-1}`, before the step size. Step rules apply to the
            full direction. Momentum is reset if the direction is not a descent direction of the
            quadratic model, and after a rejected step.
        momentum_kind: "plain" (None without ``sketch``), or "projected" (None with it) to keep only
            the part of :math:`d_{k-1}` that the Jacobian of this batch maps to zero,
            :math:`\mu (1 - V_r V_r^T) d_{k-1}` with the right singular vectors that ``rcond``
            keeps: as SPRING does (Goldshlager, Abrahamsen, Lin, J. Comput. Phys. 2024, arXiv
            2401.10190). The memory of sketches, :math:`1 / (1 - \mu)`, begins at one step and
            grows by one in ten.
        chunk: backward passes in one batch; None chooses by their memory, read off the graph.
        sketch: k, for many outputs per sample: rows along k orthonormal directions of the outputs
            of each sample in place of all D, the first along the gradient of its loss, the others
            drawn in each step. k backward passes instead of D, and B·k rows; step rules see the
            loss by all outputs, and its curvature by the rows. "auto" makes about 256 rows, fewer
            where most of them are cut, and is exact for batches of few outputs. None for all. Or a
            function that returns directions (batch, k - 1, D) besides the gradient (batch, D),
            which it is given.
        process_group: the processes that step together, each on its own samples: a group of
            ``torch.distributed``, "auto" for the default group if there is one, or None for this
            process alone. All end with the same parameters, those of the step on the samples of
            all of them.
        reduction: "mean" if the loss is the mean over the samples of its process, as in most
            training loops: the joint loss is then the mean over all samples, and processes with
            more samples have a larger weight. "sum" adds the losses.
        cuda_graph: record closure, backward passes and Gram matrix on the GPU once, after a few
            steps, and replay them from then on: for steps dominated by starting many small
            kernels. The closure is not called again, except by rules that measure; let it read
            the batch from persistent tensors, and copy the next one into them
            (``batch.copy_(...)``). Shapes must stay the same, and nothing in it may depend on
            numbers that the host reads.

    Raises:
        TypeError: if an argument is of another type.
        ValueError: if an argument lies outside its range.

    Example::

        optimizer = hig.HIG(network.parameters())

        def closure():
            prediction = simulate(start, network(target))
            return (prediction - target).square().sum(1).mean(), prediction

        loss = optimizer.step(closure)
        print(optimizer.report)
    """

    report: StepReport | None

    def __init__(
        self,
        params: ParamsT,
        lr: float | None = None,
        rcond: float | Literal["auto"] = "auto",
        kappa: float = -0.5,
        *,
        engine: str | Engine = "auto",
        method: str | Lanczos = "auto",
        step_rule: str | StepRule | None = None,
        momentum: float | None = None,
        momentum_kind: str | None = None,
        chunk: int | None = None,
        sketch: int | Literal["auto"] | Directions | None = None,
        process_group: ProcessGroup = "auto",
        reduction: str = "mean",
        cuda_graph: bool = False,
    ):
        filter = HalfInverse(kappa=kappa, rcond=rcond)
        options = StepOptions(
            engine=engine, method=method, step_rule=step_rule,
            momentum=momentum, momentum_kind=momentum_kind, chunk=chunk, sketch=sketch,
            process_group=process_group, reduction=reduction, cuda_graph=cuda_graph,
        )  # fmt: skip
        super().__init__(params, lr, filter, options)
        if getattr(self._rule, "damps", False) and kappa < _DAMPED_BELOW:
            self.state["damping"] = {"value": None}

    def _advance(self, attempts: Attempts, linearisation: Linearisation) -> StepReport:
        damped = isinstance(self.filter, HalfInverse) and self.filter.kappa < _DAMPED_BELOW
        if not (damped and getattr(self._rule, "damps", False)):
            return super()._advance(attempts, linearisation)
        state = self.state.setdefault("damping", {"value": None})
        steps = DampedSteps(state, self._rule, attempts.with_momentum)
        return steps.take(attempts, linearisation, self.filter)


class GaussNewton(HIG):
    r"""Gauss-Newton: the full pseudo-inverse, ``kappa = -1``; with "trust" damped at first.

    All arguments are those of :class:`HIG`.
    """

    def __init__(
        self,
        params: ParamsT,
        lr: float | None = None,
        rcond: float | Literal["auto"] = "auto",
        *,
        engine: str | Engine = "auto",
        method: str | Lanczos = "auto",
        step_rule: str | StepRule | None = None,
        momentum: float | None = None,
        momentum_kind: str | None = None,
        chunk: int | None = None,
        sketch: int | Literal["auto"] | Directions | None = None,
        process_group: ProcessGroup = "auto",
        reduction: str = "mean",
        cuda_graph: bool = False,
    ):
        super().__init__(
            params, lr, rcond, kappa=-1.0,
            engine=engine, method=method, step_rule=step_rule,
            momentum=momentum, momentum_kind=momentum_kind, chunk=chunk, sketch=sketch,
            process_group=process_group, reduction=reduction, cuda_graph=cuda_graph,
        )  # fmt: skip
