"""Gradients of the loss with respect to all parameters, for means and moments."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.parameter import is_lazy

from hig._kronecker.adam import accumulable
from hig._step.objective import loss_gradient
from hig._torch.host import DeferredChecks

__all__ = ["parameter_gradients"]


def parameter_gradients(
    loss: Tensor, prediction: Tensor, parameters: Sequence[Tensor], keep_graph: bool
) -> dict[Tensor, Tensor]:
    """Return the gradients of the parameters that the prediction depends on.

    Args:
        loss: scalar.
        prediction: (B, ...), the outputs that it was computed from.
        parameters: those that were trained before the closure.
        keep_graph: keep the graph of the prediction, for the probe.

    Returns:
        :func:`~hig._kronecker.adam.accumulable` gradients, by parameter.

    Raises:
        NonFiniteError: loss, prediction or the gradient of the loss hold NaN or Inf.
        ValueError: no parameter can be trained, or loss and prediction do not belong together.
    """
    # The closure initializes lazy parameters that it uses, and may freeze others.
    parameters = [p for p in parameters if p.requires_grad and not is_lazy(p)]
    if not parameters:
        raise ValueError(
            "all parameters of the optimizer are frozen or uninitialized after the closure; "
            "check that it runs the network whose parameters the optimizer holds"
        )
    checks = DeferredChecks()
    outward = loss_gradient(loss, prediction, parameters, False, checks)
    checks.settle()
    derivatives = torch.autograd.grad(
        prediction, parameters, outward, retain_graph=keep_graph, allow_unused=True
    )
    pairs = zip(parameters, derivatives, strict=True)
    return {p: accumulable(g) for p, g in pairs if g is not None}
