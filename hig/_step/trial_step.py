"""A step that can be tried, measured and taken back."""

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import GradientEdge

from hig._torch.autograd_graph import nodes_behind
from hig._torch.plain_tensors import origin
from hig.errors import out_of_memory

__all__ = ["RandomState", "Trial", "curvature_along", "put_back"]


class RandomState:
    """Torch's random state at one moment, so that a closure sees the same numbers again."""

    def __init__(self, device: torch.device):
        self._cpu = torch.get_rng_state()
        self._device = device
        self._cuda = torch.cuda.get_rng_state(device) if device.type == "cuda" else None

    def replay(self, function: Callable[[], Any]) -> Any:
        """Call ``function`` from the remembered state; afterwards the state is as before."""
        devices = [self._device] if self._cuda is not None else []
        with torch.random.fork_rng(devices=devices):
            torch.set_rng_state(self._cpu)
            if self._cuda is not None:
                torch.cuda.set_rng_state(self._cuda, self._device)
            return function()


class Trial:
    r"""Parameters along a direction, with the quadratic model of the loss along it.

    A step of size :math:`\eta` changes the outputs by :math:`-\eta v`, so the model of the loss
    is :math:`L - \eta\, g \cdot v + \tfrac12 \eta^2 |v^T H v|`.

    Args:
        parameters: the parameters, changed in place.
        directions: one per parameter, float64.
        lr: the learning rate that multiplies whatever a rule proposes.
        loss: the loss before the step; this and the next two are NaN where no rule measures.
        slope: g · v.
        curvature: vᵀ H v.
        evaluate: gives the loss of the same batch at the present parameters.
        resolution: rounding of the loss, relative to it.
    """

    def __init__(
        self,
        parameters: Sequence[Tensor],
        directions: Sequence[Tensor],
        lr: float,
        loss: float,
        slope: float,
        curvature: float,
        evaluate: Callable[[], float],
        resolution: float = 0.0,
    ):
        self._unseen = 4 * resolution * abs(loss)
        self.lr, self.loss, self.slope, self.curvature = lr, loss, slope, abs(curvature)
        self._parameters, self._directions, self._evaluate = parameters, directions, evaluate
        self._start: list[Tensor] | None = None
        self._losses: dict[float, float] = {}
        self.step_size = 0.0

    def move(self, step_size: float) -> None:
        """Put the parameters at ``start - step_size * direction``; 0 restores them exactly."""
        if self._start is None:
            self._start = [parameter.detach().clone() for parameter in self._parameters]
        if step_size == 0:
            self.undo()
            return
        for parameter, start, direction in zip(
            self._parameters, self._start, self._directions, strict=True
        ):
            parameter.copy_(start - step_size * direction)
        self.step_size = step_size

    def undo(self) -> None:
        """Put the parameters back to where they were, also from halfway; takes no memory."""
        if self._start is not None:
            put_back(self._parameters, self._start)
        self.step_size = 0.0

    def measure(self, step_size: float) -> float:
        """Move there and return the loss; infinite where it is not a finite number."""
        if self.step_size != step_size or self._start is None:
            self.move(step_size)
        if step_size not in self._losses:
            loss = self._evaluate()
            self._losses[step_size] = loss if math.isfinite(loss) else math.inf
        return self._losses[step_size]

    def begins_at(self, loss: float) -> bool:
        """Whether the loss before the step is this one, but for rounding."""
        return abs(self.loss - loss) <= 4 * self._unseen

    def gain_ratio(self) -> float:
        """Achieved over predicted decrease of the loss at the present step size.

        NaN where both are lost in the rounding of the loss, as on a plateau far above zero.
        """
        eta = self.step_size
        # eta**2 would be an error, not infinite, where it is too large.
        predicted = eta * self.slope - 0.5 * (eta * eta) * self.curvature
        if not predicted > 0:
            return -math.inf
        achieved = self.loss - self.measure(eta)
        if predicted <= self._unseen and abs(achieved) <= self._unseen:
            return math.nan
        return achieved / predicted


@torch.no_grad()
def put_back(parameters: Iterable[Tensor], values: Iterable[Tensor]) -> None:
    """Copy values into parameters."""
    for parameter, value in zip(parameters, values, strict=True):
        parameter.copy_(value)


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
    # What is marked once_differentiable raises in backward() alone: here it is left out in silence.
    place = origin(prediction)
    edge = place if isinstance(place, GradientEdge) else None
    stop = (edge.node, edge.output_nr) if edge else (prediction.grad_fn, prediction.output_nr)
    if any(node.name() == "torch::autograd::Error" for node in nodes_behind(gradient, stop)):
        raise _no_curvature("a torch.autograd.Function in it is marked once_differentiable")
    if product is None:
        return change.new_zeros(())
    return (product.double() * change).sum()


def _no_curvature(why: str) -> ValueError:
    return ValueError(
        "the step is measured by the second derivative of the loss in the outputs, which this loss "
        f"does not have ({why}); write the loss in operations that can be differentiated twice, or "
        "take step_rule='fixed' where the optimizer has it"
    )
