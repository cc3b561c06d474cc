"""Half-inverse gradients with a Kronecker factorisation: about the cost of Adam per step."""

from collections import defaultdict
from collections.abc import Callable, Sequence
from contextlib import ExitStack, nullcontext
from typing import Any

import torch
from torch import Tensor
from torch.optim.optimizer import ParamsT

from hig._kronecker.adam import check_adam_group, trained_part
from hig._kronecker.fallback_reasons import Explanation, ParameterCalls
from hig._kronecker.gradients import parameter_gradients
from hig._kronecker.graph_factors import GraphFactors, combined
from hig._kronecker.layer_factors import LayerFactors, check_finite, factors_of_layers, random_probe
from hig._kronecker.layer_state import (
    check_state,
    copied_state,
    forget_factors,
    outline,
    position,
    refresh_power,
    take_factors,
)
from hig._kronecker.report import KroneckerReport
from hig._kronecker.share import Share
from hig._kronecker.update import move, restored_after_errors
from hig._step.closure import (
    Closure,
    apart_from_autocast,
    call,
    check_closure,
    explained,
    loss_and_prediction,
)
from hig._step.param_groups import check_group_keys, check_group_lr
from hig._torch.host import PhaseClock
from hig._torch.ranks import ProcessGroup, check_process_group
from hig._torch.threads import on_fitting_threads
from hig.arguments import (
    FRACTION,
    GRAFTS,
    KAPPA,
    POSITIVE,
    REDUCTIONS,
    check_choice,
    check_count,
    check_function,
    check_number,
    check_parameters,
)

__all__ = ["KroneckerHIG"]


class KroneckerHIG(torch.optim.Optimizer):
    r"""Half-inverse gradients, approximated layer by layer with two small factors.

    .. math::
        J^\kappa g = (J^T J)^{(\kappa - 1) / 2} J^T g \approx (S \otimes A)^{-p} \,\mathrm{vec}\, G,
        \qquad p = \tfrac{1 - \kappa}{2}

    For each linear or convolution layer G is the gradient of the loss with respect to its weight,
    the bias being a further column, A the second moment of its inputs and S that of the gradients
    of its outputs for a random projection of the prediction; p is 3/4 for the half-inverse, 1 for
    Gauss-Newton (K-FAC, arXiv 1503.05671) and 1/2 for the powers of Shampoo (arXiv 1802.09568). A
    step takes one backward pass for all samples, outputs and layers, and a second one in every
    ``probe_every`` steps. No matrix grows with the batch, unlike in an exact step, so that any
    batch size is possible.

    By default two factors share the power, in the eigenbasis of S and A: the known spectrum and the
    second moments v of the rotated gradients, which follow it where it moves (SOAP, arXiv
    2409.11321, has the moments alone and takes its basis from the gradients). With m the mean
    gradient there, the direction is :math:`\lambda^{1/4 - p}\, v^{-1/4}\, m`, as v is proportional
    to the eigenvalues :math:`\lambda` of :math:`S \otimes A` where residuals are independent. Other
    values of ``graft`` take :math:`S^{-p} m A^{-p}`. The step has the norm of Adam's (grafting,
    arXiv 2002.11803), so learning rates are those of Adam or SOAP.

    A and S are moments over all positions at which a weight is used, whichever axis holds the
    samples: layers may be called with nodes of graphs, with time first, without a batch, or several
    times with different numbers of points. Weights that no call of a layer shows, as in derivatives
    of the network or recurrent cells, are found in the autograd graph. Others are updated by Adam;
    ``report.left_to_adam`` has the reason for each, and there is a warning if no layer was found.
    Means and factors of float16 and bfloat16 parameters are in float32, complex parameters are
    treated as real and imaginary parts, and sparse gradients become dense.

    Args:
        params: parameters, named parameters or parameter groups.
        lr: factor of the step, in the units of Adam's.
        kappa: exponent in [-1, 1]: -0.5 is the half-inverse, -1 Gauss-Newton, 1 the gradient.
        damping: added to the eigenvalues of :math:`S \otimes A`, in units of their mean.
        betas: decay of the means of gradients and, where Adam has them, of their squares.
        eps: as in ``torch.optim.Adam``.
        graft: "eigenbasis" for second moments in the eigenbasis of the factors, and the norm of
            Adam's step there for all layers together, and for each within about a factor of the
            root of two. Else the direction has the powers of the factors alone: "layer" if each
            layer gets the norm of Adam's step, "global" if all together do; None leaves the
            direction unchanged.
        decay: decay of the running means S and A, and of second moments in their eigenbasis.
        probe_every: steps from one update of S and A to the next; each of the first steps
            updates them.
        refresh_every: steps from one decomposition of S and A to the next; early on they are
            decomposed after 1, 2, 4, ... steps. The eigenbasis follows by one step of orthogonal
            iteration, and the second moments follow the basis.
        metric_root: applies the symmetric root of the metric M in which the loss measures the
            outputs, if it is :math:`\tfrac12 r^T M r`, to a tensor of their shape: S is then that
            of :math:`M^{1/2} J`. None for a plain sum of squares.
        seed: seed of the random projections; torch's generators are not used.
        process_group: see :class:`hig.HIG`: "auto", a group, or None for this process alone.
            Several processes take the step of one on the samples of all together. ``metric_root``
            then receives the outputs of the samples of its process.
        reduction: "mean" if the loss is a mean over the samples of its process, "sum" if the losses
            of all processes are added.

    Attributes:
        report: the :class:`hig.KroneckerReport` of the last step, None before the first.

    Raises:
        ValueError: if an argument lies outside its range.

    Example::

        optimizer = hig.KroneckerHIG(network.parameters(), lr=3e-3)

        def closure():
            prediction = simulate(start, network(target))
            return (prediction - target).square().sum(1).mean(), prediction

        loss = optimizer.step(closure)
    """

    state: defaultdict[Any, Any]  # the count of steps lies under a name

    def __init__(
        self,
        params: ParamsT,
        lr: float = 1e-3,
        kappa: float = -0.5,
        damping: float = 0.1,
        *,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        graft: str | None = "eigenbasis",
        decay: float = 0.95,
        probe_every: int = 20,
        refresh_every: int = 50,
        metric_root: Callable[[Tensor], Tensor] | None = None,
        seed: int = 0,
        process_group: ProcessGroup = "auto",
        reduction: str = "mean",
    ):
        params = check_parameters(params, "params")
        check_number(kappa, "kappa", KAPPA, "-0.5 is the half-inverse")
        check_number(damping, "damping", POSITIVE, "try 0.1")
        check_choice(graft, "graft", (*GRAFTS, None))
        check_number(decay, "decay", FRACTION, "try 0.95")
        check_count(probe_every, "probe_every", "try 10")
        check_count(refresh_every, "refresh_every", "try 50")
        if metric_root is not None:
            check_function(metric_root, "metric_root", "(outputs) -> outputs")
        check_count(seed, "seed", "try 0", least=0)
        check_process_group(process_group)
        check_choice(reduction, "reduction", REDUCTIONS)
        super().__init__(params, {"lr": lr, "betas": betas, "eps": eps})
        self._power, self._damping = (1 - kappa) / 2, damping
        self._graft, self._decay = graft, decay
        self._probe_every, self._refresh_every = probe_every, refresh_every
        self._metric_root, self._seed = metric_root, seed
        self._process_group, self._reduction = process_group, reduction
        self.report: KroneckerReport | None = None
        self._explanation = Explanation()
        self._by_graph = GraphFactors()
        self.state["count"] = {"steps": 0}

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add parameters; see ``torch.optim.Optimizer``.

        Complex parameters are trained by Adam; those that are not floating-point are ignored.

        Raises:
            TypeError: a parameter is sparse, or a setting is not a number.
            ValueError: a learning rate, betas or eps are out of range, or a setting is unknown.
        """
        check_group_keys(param_group, self.defaults)
        super().add_param_group(param_group)
        group = self.param_groups[-1]
        check_adam_group(group)
        check_group_lr(trained_part(group))

    def __getstate__(self) -> dict[str, Any]:
        """Return the complete state for copies and pickles; that of torch has public parts only."""
        private = (
            "report", "_power", "_damping", "_graft", "_decay", "_probe_every",
            "_refresh_every", "_metric_root", "_seed", "_process_group", "_reduction",
            "_explanation", "_by_graph",
        )  # fmt: skip
        return {**super().__getstate__(), **{name: getattr(self, name) for name in private}}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load copies of learning rates, moments and factors; see ``torch.optim.Optimizer``.

        Raises:
            TypeError: it is not a dictionary.
            ValueError: it is the state of another optimiser, or of other parameters; nothing has
                been changed.
        """
        flat, seen = self._flat(), [state_dict]
        check_state(state_dict, flat)

        def before(_: torch.optim.Optimizer, state: dict[str, Any]) -> None:
            check_state(state, flat)  # hooks of users run before this one
            seen.append(state)

        def after(_: torch.optim.Optimizer) -> None:
            self.state.update(copied_state(seen[-1], flat))

        hooks = [
            self.register_load_state_dict_pre_hook(before),
            self.register_load_state_dict_post_hook(after, prepend=True),
        ]
        try:
            super().load_state_dict(state_dict)
        finally:
            for hook in hooks:
                hook.remove()

    @on_fitting_threads
    def step(self, closure: Closure | None = None) -> Tensor:  # type: ignore[override]
        """Take one step.

        Args:
            closure: returns ``(loss, prediction)``: a scalar and the (batch, ...) outputs it was
                computed from. The loss may depend on the parameters through ``prediction`` alone.
                It is called once. None is refused.

        Returns:
            The loss before the step, detached; with several processes that of the whole batch.

        Raises:
            NonFiniteError: loss, prediction or their derivatives hold NaN or Inf; neither
                parameters nor state have been changed. Or the step is too large for the dtype of
                the parameters; none has been changed.
            DecompositionError: the factors of a layer cannot be decomposed; no parameter has been
                changed.
            RankError: another process rank failed or was lost; no parameter has been changed.
            ValueError: the closure does not return a scalar loss and a prediction, or process ranks
                differ in parameters, settings or layers.
        """
        steps, clock = self.state["count"]["steps"], PhaseClock()
        share = Share(self._process_group, self._reduction)
        probing = steps * (1 - self._decay) < 1 or steps % self._probe_every == 0
        with ExitStack() as contexts:
            with share.agreement():
                closure, parameters = check_closure(closure), self._trainable()
                closure, without_autocast = apart_from_autocast(closure, parameters[0].device)
                contexts.enter_context(explained())
                contexts.enter_context(without_autocast)
                calls = ParameterCalls(parameters) if probing else None
                watching = nullcontext() if calls is None else calls
                with clock.phase("forward"), torch.enable_grad(), watching:
                    outcome = call(closure)
                loss, prediction = loss_and_prediction(outcome)
                with clock.phase("gradient"):
                    gradients = parameter_gradients(loss, prediction, parameters, probing)
                share.check_finite(gradients)
            share.join(prediction, self._flat(), gradients, self._settings)
            loss = share.whole_loss(loss.detach())
            factors: list[LayerFactors] = []
            thorough = False
            if calls is not None:
                factors, thorough = self._probe(calls, prediction, gradients, share, clock)
            with clock.phase("gradient"):
                gradients = share.whole_gradients(gradients)
            with torch.no_grad(), restored_after_errors(gradients):
                with share.agreement():
                    check_finite(gradients, factors)
                    if calls is not None:
                        self._explain(calls, factors, gradients, thorough)
                    with clock.phase("factors"):
                        refreshed = self._learn(factors, steps)
                    with clock.phase("update"):
                        moved = move(
                            self.state, self.param_groups, self._flat(), gradients,
                            self._graft, self._decay,
                        )  # fmt: skip
                share.take_first(list(gradients))
            if probing:
                self._explanation.take_text(share.first_text(self._explanation.as_text()))
        self.state["count"]["steps"] = steps + 1
        left = self._explanation.of(moved.by_adam, self.param_groups)
        self.report = KroneckerReport(
            loss, moved.layers, len(moved.by_adam), moved.norm, moved.grafts, probing, refreshed,
            clock.seconds, left, list(self._explanation.remarks), share.communication,
        )  # fmt: skip
        return loss

    def _probe(
        self,
        calls: ParameterCalls,
        prediction: Tensor,
        gradients: dict[Tensor, Tensor],
        share: Share,
        clock: PhaseClock,
    ) -> tuple[list[LayerFactors], bool]:
        """Compute the factors of the whole batch; return also whether ``partial`` is set."""
        steps = self.state["count"]["steps"]
        # Also if powers are due: the first gradients may be zero by chance.
        known = calls.signature() == self._explanation.signature
        thorough = share.on_any(not known or self._due(steps))
        with clock.phase("probe"), torch.no_grad():
            with share.agreement():
                probe = random_probe(prediction, self._seed + steps, self._metric_root, share.place)
                factors = factors_of_layers(calls.uses, prediction, probe, thorough)
                factors = self._by_graph.added(
                    factors, calls.signature(), prediction, probe, list(gradients), thorough
                )
                share.check_finite(gradients, factors)
            return combined(share.whole_factors(factors, self._flat())), thorough

    # -- layers and reasons ----------------------------------------------------------------------

    def _explain(
        self,
        calls: ParameterCalls,
        factors: Sequence[LayerFactors],
        gradients: dict[Tensor, Tensor],
        thorough: bool,
    ) -> None:
        """Find the reasons why parameters have no factors, and warn, before anything changes."""
        self._explanation.update(calls, factors, gradients, self.param_groups, thorough)
        if not factors and not any("scale" in self.state.get(p, ()) for p in gradients):
            left = self._explanation.of(gradients, self.param_groups)
            self._explanation.warn(left, stacklevel=5)  # behind `on_fitting_threads`

    # -- factors ---------------------------------------------------------------------------------

    def _due(self, steps: int) -> bool:
        """Return whether factors are decomposed in a step: after 1, 2, 4, ... and periodically."""
        return steps & (steps - 1) == 0 or steps % self._refresh_every == 0

    def _learn(self, factors: Sequence[LayerFactors], steps: int) -> bool:
        """Update the running means of factors, and decompose those that are due."""
        flat = self._flat()
        due, refreshed = self._due(steps), False
        for layer_factors in factors:
            state = self.state[layer_factors.layer.weight]
            state["bias"] = position(layer_factors.layer.bias, flat)
            if layer_factors.layer.bias is not None:
                forget_factors(self.state[layer_factors.layer.bias])
            take_factors(state, layer_factors, self._decay)
            if due or "scale" not in state:
                refresh_power(state, self._decay, self._power, self._damping, self._graft)
                refreshed = True
        return refreshed

    # -- agreement of process ranks ---------------------------------------------------------------

    def _settings(self) -> tuple[object, ...]:
        """Return settings and an outline of the state, to be equal on all process ranks."""
        groups = [
            (len(g["params"]), float(g["lr"]), *map(float, g["betas"]), float(g["eps"]))
            for g in self.param_groups
        ]
        options = (
            self._power, self._damping, self._graft, self._decay,
            self._probe_every, self._refresh_every, self._metric_root is None, self._seed,
        )  # fmt: skip
        state = [outline(self.state.get(key, {})) for key in ("count", *self._flat())]
        return groups, options, state

    def _flat(self) -> list[Tensor]:
        return [parameter for group in self.param_groups for parameter in group["params"]]

    def _trainable(self) -> list[Tensor]:
        for group in self.param_groups:
            check_group_lr(trained_part(group))  # schedulers write here
        trained = list(dict.fromkeys(p for p in self._flat() if p.requires_grad))
        if not trained:
            raise ValueError(
                "none of the optimizer's parameters requires a gradient; call requires_grad_() on "
                "those that are to be trained"
            )
        return trained
