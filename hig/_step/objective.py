"""Loss, prediction and loss gradient of one closure call."""

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd.graph import GradientEdge
from torch.nn.parameter import is_lazy

from hig._jacobian.capture import Captured, ForwardPass
from hig._jacobian.distributed import BatchSplit
from hig._step.closure import explained
from hig._step.row_map import FewerRows, RowMap
from hig._step.weights import checked_weights
from hig._torch.autograd_graph import leaves, origin, reachable_nodes
from hig._torch.host import DeferredChecks, PhaseClock
from hig._torch.ranks import ProcessGroup, Ranks
from hig.errors import NonFiniteError, described, out_of_memory

__all__ = [
    "Objective",
    "StepContext",
    "check_pair",
    "curvature_along",
    "expect_finite",
    "loss_gradient",
    "objective_of",
    "ranks_of",
]


@dataclass(frozen=True)
class Objective:
    """Loss of a batch at the outputs of a forward pass.

    Attributes:
        forward: the forward pass of this process.
        loss: the loss of the whole batch, a scalar.
        gradient: gradient of the loss with respect to the prediction, same shape.
        flat_gradient: that of the whole batch, g, (n,) float64, without a graph.
        checks: deferred checks of loss, prediction and gradient.
        split: the samples of each process rank; None if this process steps alone.
        weight: factor of the loss of this process in that of the whole batch.
        row_map: the outputs of the closure, if ``forward`` and ``gradient`` have other rows in
            their place.
        parts: the objectives of micro-batches, whose outputs these are, one after the other.
        least_cut: smallest cut-off that ``rcond="auto"`` may choose.
    """

    forward: ForwardPass
    loss: Tensor
    gradient: Tensor
    flat_gradient: Tensor
    checks: DeferredChecks
    split: BatchSplit | None = None
    weight: float = 1.0
    row_map: RowMap | None = None
    parts: Sequence["Objective"] = ()
    least_cut: float = 0.0

    @property
    def closure_prediction(self) -> Tensor:
        """Prediction of the closure, (B, ...)."""
        return self.forward.prediction if self.row_map is None else self.row_map.prediction

    @property
    def closure_gradient(self) -> Tensor:
        """Gradient of the loss with respect to it."""
        return self.gradient if self.row_map is None else self.row_map.gradient

    @property
    def fewer_rows(self) -> FewerRows | None:
        """Counts of the whole batch, if there are fewer rows than outputs."""
        if self.row_map is None or self.row_map.directions is None:
            return None
        samples, directions, outputs = self.row_map.directions.shape
        samples = samples if self.split is None else sum(self.split.samples)
        return FewerRows(samples, directions, outputs, self.row_map.exact)

    @property
    def samples(self) -> int:
        """B, of all processes together."""
        return len(self.forward.prediction) if self.split is None else sum(self.split.samples)

    @property
    def sketched(self) -> bool:
        """Whether the rows see a part of the outputs."""
        return self.fewer_rows is not None and not self.fewer_rows.exact

    def weighted(self, weights: Tensor) -> "Objective":
        """Return the objective whose rows are the outputs times the roots of weights.

        Args:
            weights: (B,) or of any shape that broadcasts to that of the prediction.

        Raises:
            ValueError: weights are negative, not finite or of another shape, or the loss depends
                on outputs of weight 0.
        """
        prediction, gradient = self.forward.prediction, self.gradient
        weights = checked_weights(weights, prediction, gradient)
        roots = weights.sqrt().reshape(len(prediction), -1)
        row_map = RowMap(prediction, gradient, roots=roots)
        with torch.enable_grad():
            rows = roots * prediction.reshape(roots.shape)
        return self._with(rows, row_map.weighted_gradient(), row_map)

    def with_rows(self, rows: Tensor, directions: Tensor, exact: bool = False) -> "Objective":
        """Return the objective with the part of its rows along some directions.

        Args:
            rows: (B, k), with its graph.
            directions: (B, k, D), see :class:`~hig._step.row_map.RowMap`.
            exact: see there.
        """
        row_map = self.row_map or RowMap(self.forward.prediction, self.gradient)
        row_map = replace(row_map, directions=directions, exact=exact)
        gradient = row_map.weighted_gradient().unsqueeze(-1)
        return self._with(rows, (directions.double() @ gradient).squeeze(-1), row_map)

    def _with(self, rows: Tensor, gradient: Tensor, row_map: RowMap) -> "Objective":
        return replace(
            self,
            forward=replace(self.forward, prediction=rows),
            gradient=gradient.to(rows.dtype),
            flat_gradient=gradient.flatten(),
            row_map=row_map,
        )

    def curvature(self, change: Tensor) -> Tensor:
        """Return vᵀ H v of the samples of this process, see :func:`curvature_along`.

        Args:
            change: v, change of the outputs of the closure, float64.
        """
        if not self.parts:
            return curvature_along(self.closure_gradient, self.closure_prediction, change)
        sizes = [part.closure_prediction.numel() for part in self.parts]
        pieces = zip(self.parts, change.split(sizes), strict=True)
        return torch.stack([part.weight * part.curvature(piece) for part, piece in pieces]).sum()

    def local_change(self, output_change: Tensor) -> Tensor:
        """Return the change of the closure's outputs in this process, for one of all rows (n,).

        With other rows the part of the change that they see, or an estimate of the whole: see
        :meth:`~hig._step.row_map.RowMap.lift`.
        """
        if self.split is not None:
            output_change = output_change[self.split.local_rows]
        return output_change if self.row_map is None else self.row_map.lift(output_change)


@dataclass(frozen=True)
class StepContext:
    """Parameters of one step, and the process ranks that take it.

    Attributes:
        parameters: the trained parameters of all groups.
        lrs: the learning rate of each.
        names: the name of each; None for an unnamed one.
        ranks: the process ranks that step together; None if this process steps alone.
        clock: seconds per phase.
    """

    parameters: list[Tensor]
    lrs: list[float]
    names: list[str | None]
    ranks: Ranks | None
    clock: PhaseClock

    def agreement(self) -> AbstractContextManager[None]:
        """Return a context in which an error on one process rank is raised on all."""
        return nullcontext() if self.ranks is None else self.ranks.agreement()


def objective_of(
    loss: Tensor,
    prediction: Tensor,
    captured: Captured,
    step: StepContext,
    curvature: bool,
) -> Objective:
    """Return the objective of the samples of this process, after checking loss and prediction.

    Args:
        loss: scalar.
        prediction: (B, ...), real floating point, with a graph.
        captured: layer calls and controls.
        step: parameters and their names.
        curvature: keep the graph of the gradient, for products with the Hessian.

    Raises:
        TypeError: loss or prediction is not a real floating-point tensor.
        ValueError: see :func:`loss_gradient` and :func:`names_of`.
    """
    checks = DeferredChecks()
    gradient = loss_gradient(loss, prediction, step.parameters, curvature, checks)
    names = names_of(step.parameters, step.names)
    controls, named = captured.controls(), bool(captured.named)
    forward = ForwardPass(captured.uses, prediction, step.parameters, names, controls, named)
    return Objective(forward, loss, gradient, gradient.detach().double().flatten(), checks)


def ranks_of(process_group: ProcessGroup) -> Ranks | None:
    """Return the process ranks that step together; None if this process steps alone."""
    if process_group is None or not (dist.is_available() and dist.is_initialized()):
        return None
    ranks = Ranks(process_group)
    return ranks if ranks.size > 1 else None


def names_of(parameters: Sequence[Tensor], names: Sequence[str | None]) -> list[str]:
    """Return names of parameters for messages.

    Args:
        parameters: the parameters.
        names: the name of each; None for an unnamed one.

    Raises:
        ValueError: a parameter of a lazy module has no shape yet.
    """
    for index, parameter in enumerate(parameters):
        if is_lazy(parameter):
            raise ValueError(
                f"{names[index] or f'parameter {index}'} belongs to a lazy module that the closure "
                "has not called, and has no shape; call the network once before, or leave this "
                "module out"
            )
    pairs = enumerate(zip(parameters, names, strict=True))
    return [name or f"parameter {index} {tuple(p.shape)}" for index, (p, name) in pairs]


def loss_gradient(
    loss: Tensor,
    prediction: Tensor,
    parameters: Sequence[Tensor],
    curvature: bool,
    checks: DeferredChecks,
) -> Tensor:
    """Return the gradient of the loss with respect to the prediction, after checking both.

    Args:
        loss: scalar.
        prediction: (B, ...), real floating point, with a graph.
        parameters: the parameters of the step.
        curvature: keep the graph of the gradient, for products with the Hessian.
        checks: collects the conditions that loss, prediction and gradient are finite.

    Raises:
        TypeError: loss or prediction is not a real floating-point tensor.
        ValueError: shapes are wrong, the loss does not depend on the prediction, or it depends
            on a parameter in another way than through the prediction.
    """
    check_pair(loss, prediction, checks)
    with explained():
        (gradient,) = torch.autograd.grad(
            loss, origin(prediction), retain_graph=True, create_graph=curvature, allow_unused=True
        )
    if gradient is None:
        raise ValueError(
            "the loss does not depend on the prediction; return the tensor that the loss was "
            "computed from, not a copy, a slice or a detached version of it; to take losses of "
            "parts, join these first (torch.cat), return the whole, and compute the losses from "
            "pieces of it (whole.split)"
        )
    _check_path(loss, prediction, parameters)
    expect_finite("the gradient of the loss", gradient, checks)
    return gradient


def check_pair(
    loss: Tensor,
    prediction: Tensor,
    checks: DeferredChecks,
    names: tuple[str, str] = ("the loss", "the prediction"),
    known: bool = False,
) -> None:
    """Raise unless a loss and the prediction that it was computed from can be differentiated.

    Args:
        loss: scalar.
        prediction: (B, ...), real floating point, with a graph.
        checks: collects the conditions that both are finite.
        names: their names in messages.
        known: whether the prediction has been checked before.

    Raises:
        TypeError: one of them is not a real floating-point tensor.
        ValueError: one of them has the wrong shape or no graph.
    """
    name = names[0]
    _check_tensor(loss, name)
    if loss.numel() != 1:
        raise ValueError(
            f"{name} must be a scalar, got shape {tuple(loss.shape)}; take the mean over samples"
        )
    if not known:
        _check_prediction(prediction, names[1], checks)
    if not loss.requires_grad:
        raise ValueError(
            f"{name} carries no gradient graph; compute it from the prediction without detach, "
            "item or no_grad, and do not call backward in the closure"
        )
    checks.expect(torch.isfinite(loss), partial(_refuse_loss, loss, names))


def _refuse_loss(loss: Tensor, names: tuple[str, str]) -> None:
    raise NonFiniteError(
        f"{names[0]} is {float(loss.detach())} although {names[1]} is finite; parameters are "
        "unchanged; check the loss function and the target"
    )


def _check_tensor(tensor: Tensor, name: str) -> None:
    if not isinstance(tensor, Tensor):
        raise TypeError(
            f"{name} must be a tensor, got {described(tensor)}; the closure returns "
            "(loss, prediction)"
        )
    if not tensor.is_floating_point():
        raise TypeError(
            f"{name} must be real floating point, got {tensor.dtype}; for complex outputs "
            "return torch.view_as_real(prediction) and compute the loss from it"
        )


def _check_prediction(prediction: Tensor, name: str, checks: DeferredChecks) -> None:
    _check_tensor(prediction, name)
    if prediction.ndim < 1 or not prediction.numel():
        raise ValueError(
            f"{name} must be (batch, ...) with at least one entry, got shape "
            f"{tuple(prediction.shape)}"
        )
    if not prediction.requires_grad:
        raise ValueError(
            f"{name} carries no gradient graph; run the closure with gradients enabled, "
            "and do not detach between network and prediction"
        )
    expect_finite(name, prediction, checks)


def expect_finite(name: str, tensor: Tensor, checks: DeferredChecks) -> None:
    """Add a check that a tensor is finite; it raises a `NonFiniteError` that names the samples.

    Args:
        name: name of the tensor.
        tensor: (B, ...).
        checks: collects the condition.
    """
    tensor = tensor.detach()
    checks.expect(torch.isfinite(tensor).all(), partial(_refuse_tensor, name, tensor))


def _refuse_tensor(name: str, tensor: Tensor) -> None:
    samples = (~torch.isfinite(tensor)).reshape(len(tensor), -1).any(1).nonzero().flatten().tolist()
    shown = f"{samples[:8]}{'...' if len(samples) > 8 else ''}"
    raise NonFiniteError(
        f"{name} holds NaN or Inf for {len(samples)} of {len(tensor)} samples: {shown}; "
        "parameters are unchanged; check the simulator at these samples, or use a smaller lr"
    )


def _check_path(loss: Tensor, prediction: Tensor, parameters: Sequence[Tensor]) -> None:
    """Raise if the graph reaches a parameter from the loss without passing the prediction."""
    if not loss.requires_grad or prediction.grad_fn is None:
        return  # refused later, with a better message; or the prediction is itself a parameter
    known = {id(parameter) for parameter in parameters}
    place = origin(prediction)
    node: Any = place.node if isinstance(place, GradientEdge) else place.grad_fn
    stop = (node, place.output_nr)
    for leaf in leaves(reachable_nodes(loss, stop)):
        if id(leaf) in known:
            raise ValueError(
                f"the loss depends on a parameter of shape {tuple(leaf.shape)} other than through "
                "the prediction; join to the prediction what else the loss uses, such as controls "
                "for their cost (torch.cat), and keep penalties on parameters out of this loss "
                "(decay the weights after the step instead)"
            )


def curvature_along(gradient: Tensor, prediction: Tensor, change: Tensor) -> Tensor:
    """Return vᵀ H v with H the Hessian of the loss in the outputs, by one product with it.

    Args:
        gradient: gradient of the loss with respect to the prediction, with its graph.
        prediction: (B, ...).
        change: v, (n,) float64.

    Returns:
        A float64 scalar; zero for a loss that is linear in the outputs.

    Raises:
        ValueError: the loss cannot be differentiated twice.
    """
    change = change.view_as(prediction)
    if not gradient.requires_grad:
        return change.new_zeros(())
    # Scaled to about one, exactly: H v may be out of the range of float32 for tiny or huge losses.
    scale = torch.exp2(torch.frexp(change.abs().amax()).exponent.double())
    change = change / scale
    with torch.enable_grad():
        try:
            (product,) = torch.autograd.grad(
                gradient,
                origin(prediction),
                change.to(gradient.dtype),
                retain_graph=True,
                allow_unused=True,
            )
        except RuntimeError as error:
            if out_of_memory(error):
                raise
            raise _no_curvature(str(error).splitlines()[0]) from error
    # ``torch.autograd.grad`` silently ignores functions marked once_differentiable, which raise in
    # ``backward()`` alone.
    place = origin(prediction)
    edge = place if isinstance(place, GradientEdge) else None
    stop = (edge.node, edge.output_nr) if edge else (prediction.grad_fn, prediction.output_nr)
    if any(node.name() == "torch::autograd::Error" for node in reachable_nodes(gradient, stop)):
        raise _no_curvature("a torch.autograd.Function in it is marked once_differentiable")
    if product is None:
        return change.new_zeros(())
    return (product.double() * change).sum() * scale * scale


def _no_curvature(why: str) -> ValueError:
    return ValueError(
        "the step is measured by the second derivative of the loss in the outputs, which this loss "
        f"does not have ({why}); write the loss in operations that can be differentiated twice, or "
        "use step_rule='fixed' if the optimizer has it"
    )
