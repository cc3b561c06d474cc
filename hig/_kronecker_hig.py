"""Half-inverse gradients with a Kronecker factorisation: the price of Adam, at any batch size."""

import copy
from collections import defaultdict
from collections.abc import Callable, Sequence
from contextlib import ExitStack, nullcontext
from typing import Any

import torch
from torch import Tensor
from torch.optim.optimizer import ParamsT

from hig._adam import AdamStep, adam_step, factor_of
from hig._backward import dense
from hig._capture import Capture
from hig._checks import Checks
from hig._closure import call, explained
from hig._graft import GRAFTS, graft_factors
from hig._groups import check_group, check_group_keys, check_group_lr, require_room
from hig._kronecker_capture import LayerFactors, factors_of_layers, random_probe
from hig._kronecker_factors import DampedPower, damped_power
from hig._kronecker_report import KroneckerReport
from hig._loss_gradient import loss_gradient
from hig._optimizer import Closure, loss_and_prediction
from hig._ranks import ProcessGroup, Ranks, check_process_group
from hig._report import PhaseClock
from hig._trial import put_back
from hig.arguments import (
    FRACTION,
    KAPPA,
    NON_NEGATIVE,
    POSITIVE,
    check_choice,
    check_count,
    check_function,
    check_number,
    check_parameters,
)
from hig.errors import NonFiniteError, described

__all__ = ["KroneckerHIG"]


class KroneckerHIG(torch.optim.Optimizer):
    r"""Half-inverse gradients, approximated layer by layer with two small factors.

    .. math::
        J^\kappa g = (J^T J)^{(\kappa - 1) / 2} J^T g \approx (S \otimes A)^{-p} \,\mathrm{vec}\, G,
        \qquad p = \tfrac{1 - \kappa}{2}

    For each linear or convolution layer G is the gradient of the loss with respect to its weight,
    the bias being a further column, A the second moment of its inputs and S that of the gradients
    of its outputs for a random projection of the prediction. The step is
    :math:`S^{-p} G A^{-p}` with p = 3/4 for the half-inverse, 1 for Gauss-Newton (K-FAC, arXiv
    1503.05671) and 1/2 for the powers of Shampoo (arXiv 1802.09568). Samples, outputs and layers
    share in one backward pass, and one more in every ``probe_every`` steps: where an exact step
    decomposes a matrix with a row per sample and output, this one takes any batch.

    The direction is applied to the running mean of the gradients and has the norm of the step
    that Adam would take (grafting, arXiv 2002.11803), so learning rates are those of Adam.
    Parameters elsewhere than in such layers, and layers that no captured call shows, are moved by
    Adam.

    Args:
        params: parameters, named parameters or parameter groups.
        lr: factor of the step, in the units of Adam's.
        kappa: exponent in [-1, 1]: -0.5 is the half-inverse, -1 Gauss-Newton, 1 the gradient.
        damping: added to the eigenvalues of :math:`S \otimes A`, in units of their mean.
        betas: factors by which the past counts in the means of gradients and of their squares.
        eps: as in ``torch.optim.Adam``.
        graft: whose norm is Adam's: "global" of all layers together, "layer" of each; None leaves
            the direction as it is.
        decay: factor by which the past counts in S and A.
        probe_every: steps from one update of S and A to the next, after a number of first ones
            that update them each.
        refresh_every: steps from one decomposition of S and A to the next; early on they are
            decomposed after 1, 2, 4, ... steps.
        metric_root: applies the symmetric root of the metric M in which the loss measures the
            outputs, if it is :math:`\tfrac12 r^T M r`, to a tensor of their shape: S is then that
            of :math:`M^{1/2} J`. None for a plain sum of squares.
        seed: of the random projections; torch's generators are left alone.
        process_group: None where each process of torch.distributed steps for itself; the step is
            not shared among processes, and "auto" refuses several.

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
        graft: str | None = "global",
        decay: float = 0.95,
        probe_every: int = 10,
        refresh_every: int = 50,
        metric_root: Callable[[Tensor], Tensor] | None = None,
        seed: int = 0,
        process_group: ProcessGroup = "auto",
    ):
        params = check_parameters(params, "params")
        _check_options(kappa, damping, graft, decay, probe_every, refresh_every, metric_root, seed)
        check_process_group(process_group)
        super().__init__(params, {"lr": lr, "betas": betas, "eps": eps})
        self._power, self._damping = (1 - kappa) / 2, damping
        self._graft, self._decay = graft, decay
        self._probe_every, self._refresh_every = probe_every, refresh_every
        self._metric_root, self._seed = metric_root, seed
        self._process_group = process_group
        self.report: KroneckerReport | None = None
        self.state["count"] = {"steps": 0}

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add parameters; see ``torch.optim.Optimizer``.

        Raises:
            TypeError: for complex parameters, and for what is no number.
            ValueError: for a learning rate, betas or eps out of range, or a setting that groups
                do not have.
        """
        check_group_keys(param_group, self.defaults)
        super().add_param_group(param_group)
        group = self.param_groups[-1]
        check_group(group)
        check_number(group["eps"], "eps", NON_NEGATIVE, "1e-8 is Adam's")
        betas, remedy = group["betas"], "(0.9, 0.999) are Adam's"
        if not isinstance(betas, tuple | list) or len(betas) != 2:
            raise TypeError(f"betas must be two numbers, got {described(betas)}; {remedy}")
        for index, beta in enumerate(betas):
            check_number(beta, f"betas[{index}]", FRACTION, remedy)

    def __getstate__(self) -> dict[str, Any]:
        """Everything, for copies and pickles; torch's own keeps its public part alone."""
        private = (
            "report", "_power", "_damping", "_graft", "_decay", "_probe_every", "_refresh_every",
            "_metric_root", "_seed", "_process_group",
        )  # fmt: skip
        return {**super().__getstate__(), **{name: getattr(self, name) for name in private}}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load learning rates, moments and factors; see ``torch.optim.Optimizer``."""
        if "count" not in state_dict["state"]:
            raise ValueError(
                "the state holds no count of steps: it is that of another optimizer; load what "
                "KroneckerHIG.state_dict() gave"
            )
        super().load_state_dict(copy.deepcopy(state_dict))  # torch would share the tensors
        self.state["count"] = dict(self.state["count"])

    def step(self, closure: Closure) -> Tensor:  # type: ignore[override]  # a pair, no number
        """Take one step.

        Args:
            closure: returns ``(loss, prediction)``: a scalar and the (batch, ...) outputs it was
                computed from. The loss may depend on the parameters through ``prediction`` alone.
                It is called once.

        Returns:
            The loss before the step, detached.

        Raises:
            NonFiniteError: loss, prediction or their derivatives hold NaN or Inf; neither
                parameters nor state have been changed. Or the parameters would, after a step that
                is too large for their dtype; none has been changed.
            DecompositionError: the factors of a layer cannot be decomposed; no parameter has been
                changed.
            ValueError: the closure does not return what it should.
        """
        check_function(closure, "closure", "of no arguments that returns (loss, prediction)")
        if (size := Ranks(self._process_group).size) > 1:
            raise ValueError(
                f"KroneckerHIG steps in one process, and torch.distributed has {size}; pass "
                "process_group=None to step in each process alone, or take HIG"
            )
        parameters, steps, clock = self._trainable(), self.state["count"]["steps"], PhaseClock()
        probing = steps * (1 - self._decay) < 1 or steps % self._probe_every == 0
        capture = Capture(parameters if probing else ())
        with clock.phase("forward"), torch.enable_grad(), capture if probing else nullcontext():
            outcome = call(closure)
        loss, prediction = loss_and_prediction(outcome)
        with clock.phase("gradient"), explained():
            checks = Checks()
            outward = loss_gradient(loss, prediction, parameters, False, checks)
            checks.settle()
            found = torch.autograd.grad(
                prediction, parameters, outward, retain_graph=probing, allow_unused=True
            )
        gradients = {p: dense(g) for p, g in zip(parameters, found, strict=True) if g is not None}
        factors: list[LayerFactors] = []
        with torch.no_grad():
            if probing:
                with clock.phase("probe"):
                    probe = random_probe(prediction, self._seed + steps, self._metric_root)
                    factors = factors_of_layers(capture.uses, prediction, probe)
            _check(gradients, factors)
            with clock.phase("factors"):
                refreshed = self._learn(factors, steps)
            loss = loss.detach()
            with clock.phase("update"):
                moved = self._move(gradients)
        self.state["count"]["steps"] = steps + 1
        self.report = KroneckerReport(loss, *moved, probing, refreshed, clock.seconds)
        return loss

    # -- factors ---------------------------------------------------------------------------------

    def _learn(self, factors: Sequence[LayerFactors], steps: int) -> bool:
        """Take factors into their running means and decompose those that are due."""
        flat = self._flat()
        due = steps & (steps - 1) == 0 or steps % self._refresh_every == 0
        refreshed = False
        for found in factors:
            state = self.state[found.layer.weight]
            state["bias"] = _position(found.layer.bias, flat)
            self._average(state, found)
            if due or "scale" not in state:
                self._refresh(state)
                refreshed = True
        return refreshed

    def _average(self, state: dict[str, Any], found: LayerFactors) -> None:
        """Running means, from zero; a layer that has changed its shape begins anew."""
        if "inputs" not in state or state["inputs"].shape != found.inputs.shape:
            state["updates"] = 0
            state["inputs"] = torch.zeros_like(found.inputs)
            state["outputs"] = torch.zeros_like(found.outputs)
            state.pop("scale", None)
        state["updates"] += 1
        state["inputs"].lerp_(found.inputs, 1 - self._decay)
        state["outputs"].lerp_(found.outputs, 1 - self._decay)

    def _refresh(self, state: dict[str, Any]) -> None:
        correction = 1 - self._decay ** state["updates"]
        outputs, inputs = state["outputs"] / correction, state["inputs"] / correction
        power = damped_power(outputs, inputs, self._power, self._damping)
        state["output_basis"], state["input_basis"] = power.outputs, power.inputs
        state["scale"] = power.scale

    # -- the step --------------------------------------------------------------------------------

    def _move(self, gradients: dict[Tensor, Tensor]) -> tuple[int, int, float, list[float]]:
        """Move all parameters that have a gradient.

        Returns:
            Numbers of layers and of other parameters, norm of the step per unit of learning rate,
            and the factor of each layer's direction.
        """
        groups = {p: group for group in self.param_groups for p in group["params"]}
        steps = {
            parameter: adam_step(
                self.state[parameter],
                gradient,
                groups[parameter]["betas"],
                groups[parameter]["eps"],
            )
            for parameter, gradient in gradients.items()
        }
        layers, flat = [], self._flat()
        rest = dict(steps)
        for weight in gradients:
            state = self.state[weight]
            if "scale" in state:
                bias = None if state["bias"] < 0 else flat[state["bias"]]
                layers.append(_direction(state, steps, weight, bias))
                for parameter in layers[-1]:
                    rest.pop(parameter, None)
        grafts, norm = graft_factors(self._graft, layers, steps, rest)
        start = [parameter.detach().clone() for parameter in gradients]
        with ExitStack() as undo:  # what is done halfway, whatever is raised
            undo.callback(put_back, gradients, start)
            for layer, graft in zip(layers, grafts, strict=True):
                for parameter, direction in layer.items():
                    size = graft * float(groups[parameter]["lr"])
                    parameter.sub_(direction, alpha=factor_of(size, parameter))
            for parameter, step in rest.items():
                step.move(parameter, float(groups[parameter]["lr"]))
            require_room(gradients, max(float(group["lr"]) for group in self.param_groups))
            undo.pop_all()
        return len(layers), len(rest), norm, grafts

    def _flat(self) -> list[Tensor]:
        return [parameter for group in self.param_groups for parameter in group["params"]]

    def _trainable(self) -> list[Tensor]:
        for group in self.param_groups:
            check_group_lr(group)  # schedulers write here
        found = list(dict.fromkeys(p for p in self._flat() if p.requires_grad))
        if not found:
            raise ValueError(
                "none of the optimizer's parameters requires a gradient; call requires_grad_() on "
                "those that are to be trained"
            )
        return found


def _direction(
    state: dict[str, Any], steps: dict[Tensor, AdamStep], weight: Tensor, bias: Tensor | None
) -> dict[Tensor, Tensor]:
    """The preconditioned mean gradient of a layer, by parameter."""
    power = DampedPower(state["output_basis"], state["input_basis"], state["scale"])
    groups, fan_out, _ = power.scale.shape
    matrix = (steps[weight].mean / steps[weight].correction).reshape(groups, fan_out, -1)
    trained = bias is not None and bias in steps
    if bias is not None:  # frozen since the factors were made: no gradient, no step
        column = steps[bias].mean / steps[bias].correction if trained else bias.new_zeros(())
        matrix = torch.cat([matrix, column.expand(bias.shape).reshape(groups, fan_out, 1)], -1)
    found = power(matrix)
    if bias is None:
        return {weight: found.view_as(weight)}
    parts = {weight: found[..., :-1].reshape(weight.shape)}
    return parts | ({bias: found[..., -1].reshape(bias.shape)} if trained else {})


def _position(bias: Tensor | None, flat: Sequence[Tensor]) -> int:
    """Where the bias stands among all parameters, which survives saving; -1 for none."""
    return next((i for i, parameter in enumerate(flat) if parameter is bias), -1)


def _check(gradients: dict[Tensor, Tensor], factors: Sequence[LayerFactors]) -> None:
    if not gradients:
        raise ValueError(
            "the prediction depends on none of the parameters; check that the closure runs the "
            "network whose parameters the optimizer holds, and with gradients enabled"
        )
    squares = [gradient.square().sum() for gradient in gradients.values()]
    squares += [factor.square().sum() for each in factors for factor in (each.outputs, each.inputs)]
    if bool(torch.isfinite(torch.stack([square.double() for square in squares])).all()):
        return
    bad = [tuple(p.shape) for p, g in gradients.items() if not bool(torch.isfinite(g).all())]
    where = f" with respect to parameters of shape {bad[:6]}" if bad else ""
    raise NonFiniteError(
        f"the derivative of the prediction holds NaN or Inf (or overflows when squared){where}; "
        "parameters are unchanged; check the simulator's derivative there"
    )


def _check_options(
    kappa: float,
    damping: float,
    graft: str | None,
    decay: float,
    probe_every: int,
    refresh_every: int,
    metric_root: Callable[[Tensor], Tensor] | None,
    seed: int,
) -> None:
    check_number(kappa, "kappa", KAPPA, "-0.5 is the half-inverse")
    check_number(damping, "damping", POSITIVE, "try 0.1")
    check_choice(graft, "graft", GRAFTS)
    check_number(decay, "decay", FRACTION, "try 0.95")
    check_count(probe_every, "probe_every", "try 10")
    check_count(refresh_every, "refresh_every", "try 50")
    if metric_root is not None:
        check_function(metric_root, "metric_root", "(outputs) -> outputs")
    check_count(seed, "seed", "try 0", least=0)
