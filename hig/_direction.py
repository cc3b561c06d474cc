"""From a captured computation to the spectral direction: what ``record`` and the steps share."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from hig._backward import Backward
from hig._blocks import JointJacobian
from hig._capture import LayerUse
from hig._decompose import Decomposition, choose_route, decompose
from hig._engine import EngineResult, build_jacobian
from hig._errors import NonFiniteError
from hig._report import PhaseClock, StepReport
from hig._spectral import SpectralFilter, cutoff

__all__ = ["Linearisation", "linearise", "loss_gradient"]


@dataclass
class Linearisation:
    """A decomposed joint Jacobian at one point, from which any filter gives its direction.

    Attributes:
        engine: the Jacobian and how it was obtained.
        decomposition: its singular values and vectors.
        loss: the loss, a scalar.
        gradient: (n,) float64, the gradient of the loss with respect to the outputs.
        parameters: all parameters, also those without columns.
        clock: seconds per phase so far.
        notes: what was done differently so far.
    """

    engine: EngineResult
    decomposition: Decomposition
    loss: Tensor
    gradient: Tensor
    parameters: Sequence[Tensor]
    clock: PhaseClock
    notes: list[str]

    def step(self, filter: SpectralFilter) -> tuple[list[Tensor], Tensor]:
        """One direction per parameter, float64 in its shape, and the change of the outputs (n,)."""
        with self.clock.phase("direction"):
            flat, output_change = self.decomposition.step(filter, self.gradient)
            directions = [torch.zeros_like(p, dtype=torch.float64) for p in self.parameters]
            sizes = [self.parameters[index].numel() for index in self.engine.order]
            for index, part in zip(self.engine.order, flat.split(sizes), strict=True):
                directions[index] = part.view_as(self.parameters[index])
        return directions, output_change

    def output_change(self, directions: Sequence[Tensor]) -> Tensor:
        """J d (n,) for one direction per parameter."""
        flat = [directions[index].flatten() for index in self.engine.order]
        return self.engine.jacobian.jvp(torch.cat(flat))

    def report(self, filter: SpectralFilter) -> StepReport:
        """The report of a step with this filter, as far as it is known now."""
        found = self.decomposition
        rows, columns = self.engine.jacobian.shape
        return StepReport(
            loss=self.loss.detach(),
            engine=self.engine.engine,
            route=found.route,
            rows=rows,
            columns=columns,
            singular_values=found.singular_values,
            rcond=max(filter.rcond, found.floor),
            cutoff=cutoff(filter, found.singular_values, found.floor),
            seconds=self.clock.seconds,
            notes=self.notes,
        )


def loss_gradient(loss: Tensor, prediction: Tensor, parameters: Sequence[Tensor], curvature: bool):
    """Gradient of the loss with respect to the prediction, after checking both.

    Args:
        loss: scalar.
        prediction: (B, ...), real floating point, with a graph.
        parameters: the parameters of the step.
        curvature: keep the graph of the gradient, for products with the Hessian.

    Raises:
        NonFiniteError: loss, prediction or gradient hold NaN or Inf.
        TypeError: loss or prediction is not a real floating-point tensor.
        ValueError: shapes are wrong, the loss does not depend on the prediction, or it depends
            on a parameter in another way than through the prediction.
    """
    _check_tensors(loss, prediction)
    (gradient,) = torch.autograd.grad(
        loss, prediction, retain_graph=True, create_graph=curvature, allow_unused=True
    )
    if gradient is None:
        raise ValueError(
            "the loss does not depend on the prediction; return the tensor that the loss was "
            "computed from, not a copy, a slice or a detached version of it"
        )
    _check_path(loss, prediction, parameters)
    _check_finite("the gradient of the loss", gradient.detach())
    return gradient


def linearise(
    uses: Sequence[LayerUse],
    loss: Tensor,
    prediction: Tensor,
    gradient: Tensor,
    parameters: Sequence[Tensor],
    names: Sequence[str],
    filter: SpectralFilter,
    engine: str,
    method: str,
    backward: Backward,
    clock: PhaseClock,
) -> Linearisation:
    """Obtain and decompose the joint Jacobian of a prediction.

    Raises:
        NonFiniteError: the Jacobian holds NaN or Inf.
        SampleDependenceError: see :func:`hig._engine.build_jacobian`.
        ValueError: unknown engine or method, or a prediction without parameters.
    """
    with clock.phase("jacobian"), torch.no_grad():
        found = build_jacobian(uses, prediction, parameters, names, engine, backward)
    jacobian = found.jacobian
    if not found.order:
        raise ValueError(
            "the prediction depends on none of the parameters; check that the closure runs the "
            "network whose parameters the optimizer holds, and with gradients enabled"
        )
    route = choose_route(jacobian.shape, prediction.dtype, filter, method)
    with torch.no_grad():
        with clock.phase("gram"):
            matrix = _form(jacobian, route)
            if not bool(torch.isfinite(matrix).all()):
                raise NonFiniteError(_non_finite_jacobian(found, parameters, names))
        with clock.phase("decomposition"):
            decomposition = decompose(jacobian, matrix, route)
    notes = [*found.notes, *backward.notes, *decomposition.notes]
    if filter.needs_small_values and filter.rcond < decomposition.floor:
        notes.append(
            f"rcond {filter.rcond:.1e} raised to {decomposition.floor:.1e}, what route "
            f"'{decomposition.route}' resolves"
        )
    flat = gradient.detach().double().flatten()
    return Linearisation(found, decomposition, loss, flat, parameters, clock, notes)


def _form(jacobian: JointJacobian, route: str) -> Tensor:
    if route == "rows":
        return jacobian.gram()
    if route == "columns":
        return jacobian.normal()
    return jacobian.dense().double()


def _check_tensors(loss: Tensor, prediction: Tensor) -> None:
    for name, tensor in (("loss", loss), ("prediction", prediction)):
        if not isinstance(tensor, Tensor):
            raise TypeError(
                f"{name} must be a tensor, got {type(tensor).__name__}; the closure returns "
                "(loss, prediction)"
            )
        if not tensor.is_floating_point():
            raise TypeError(
                f"{name} must be real floating point, got {tensor.dtype}; for complex outputs "
                "return torch.view_as_real(prediction) and compute the loss from it"
            )
    if loss.numel() != 1:
        raise ValueError(
            f"loss must be a scalar, got shape {tuple(loss.shape)}; take the mean over samples"
        )
    if prediction.ndim < 1 or not prediction.numel():
        raise ValueError(
            f"prediction must be (batch, ...) with at least one entry, got shape "
            f"{tuple(prediction.shape)}"
        )
    if not prediction.requires_grad:
        raise ValueError(
            "the prediction carries no gradient graph; run the closure with gradients enabled, "
            "and do not detach between network and prediction"
        )
    _check_finite("the prediction", prediction.detach())
    if not bool(torch.isfinite(loss.detach())):
        raise NonFiniteError(
            f"the loss is {float(loss.detach())} although the prediction is finite; parameters "
            "are unchanged; check the loss function and the target"
        )


def _check_finite(what: str, tensor: Tensor) -> None:
    finite = torch.isfinite(tensor)
    if bool(finite.all()):
        return
    samples = (~finite).reshape(len(tensor), -1).any(1).nonzero().flatten().tolist()
    shown = f"{samples[:8]}{'...' if len(samples) > 8 else ''}"
    raise NonFiniteError(
        f"{what} holds NaN or Inf for {len(samples)} of {len(tensor)} samples: {shown}; "
        "parameters are unchanged; check the simulator at these samples, or take a smaller lr"
    )


def _check_path(loss: Tensor, prediction: Tensor, parameters: Sequence[Tensor]) -> None:
    """Raise if the graph reaches a parameter from the loss without passing the prediction."""
    if not loss.requires_grad or prediction.grad_fn is None:
        return  # refused later, with a better text; or the prediction is itself a parameter
    known = {id(parameter) for parameter in parameters}
    stop = (prediction.grad_fn, prediction.output_nr)
    seen = {loss.grad_fn}
    waiting = [] if (loss.grad_fn, loss.output_nr) == stop else [loss.grad_fn]
    while waiting:
        node = waiting.pop()
        if id(getattr(node, "variable", None)) in known:
            shape = tuple(node.variable.shape)
            raise ValueError(
                f"the loss depends on a parameter of shape {shape} other than through the "
                "prediction; keep penalties on parameters out of this loss (decay "
                "the weights after the step instead)"
            )
        for following, output in node.next_functions:
            if following is None or following in seen or (following, output) == stop:
                continue
            seen.add(following)
            waiting.append(following)


def _non_finite_jacobian(
    found: EngineResult, parameters: Sequence[Tensor], names: Sequence[str]
) -> str:
    """Name the parameters and samples whose derivatives are not finite."""
    jacobian = found.jacobian
    bad_samples, bad_columns = set(), []
    for sample in range(jacobian.samples):
        rows = jacobian.rows(slice(sample, sample + 1))
        bad = ~torch.isfinite(rows.double().square().sum(0))
        if bool(bad.any()):
            bad_samples.add(sample)
            bad_columns.append(bad)
    text = "the Jacobian holds NaN or Inf (or overflows when squared)"
    if bad_samples:
        sizes = [parameters[index].numel() for index in found.order]
        flags = torch.stack(bad_columns).any(0).split(sizes)
        named = [names[i] for i, flag in zip(found.order, flags, strict=True) if bool(flag.any())]
        samples = sorted(bad_samples)
        text += (
            f" for samples {samples[:8]}{'...' if len(samples) > 8 else ''}, in the columns of "
            f"{', '.join(named[:6])}{' and more' if len(named) > 6 else ''}"
        )
    return f"{text}; parameters are unchanged; check the simulator's derivative there"
