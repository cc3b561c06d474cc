"""From several losses to ``.grad``."""

from collections.abc import Sequence

import torch
from torch import Tensor

from hig.conflictfree._config import ConFIGOperator
from hig.conflictfree._loss_gradients import differentiate
from hig.conflictfree._momentum import MomentumOperator
from hig.conflictfree._operator import Operator, combine
from hig.conflictfree._vectors import Parameters, put_gradient, slices, tensors_of

__all__ = ["accumulate", "backward"]


def backward(
    losses: Sequence[Tensor] | Tensor,
    parameters: Parameters,
    operator: Operator | None = None,
    *,
    method: str = "auto",
    retain_graph: bool = False,
) -> None:
    """Add a conflict-free direction of several losses to ``.grad``, as ``loss.backward()`` would.

    Any optimiser, scheduler, gradient clipping or trainer takes it from there::

        operator = ConFIGOperator()
        for batch in data:
            optimizer.zero_grad()
            losses = [loss_function(network, batch) for loss_function in loss_functions]
            hig.conflictfree.backward(losses, network.parameters(), operator)
            optimizer.step()

    Args:
        losses: m scalars, or a tensor (m,), each with a graph.
        parameters: a module, or an iterable of tensors, in and outside of modules. A parameter
            that only some losses reach counts as zero in the gradients of the others; one that
            none reaches, or that requires no gradient, is left alone.
        operator: an operator, with a memory or without, or any callable from an (m, P) matrix to
            (P,), such as a TorchJD aggregator; ``ConFIGOperator()`` if None. Keep one for all
            steps: it has the memory and the report.
        method: see :func:`loss_gradients`.
        retain_graph: keep the graphs of the losses for another pass.

    Raises:
        NonFiniteError: a gradient holds NaN or Inf; ``.grad`` is untouched.
        TypeError: losses or parameters are not real floating-point tensors.
        ValueError: a loss is not a scalar or has no graph, or nothing requires a gradient; or the
            operator returns another number of entries.
    """
    trainable = [parameter for parameter in tensors_of(parameters) if parameter.requires_grad]
    losses = list(losses)
    matrix, reached = differentiate(losses, trainable, method, retain_graph)
    values = [loss.detach() for loss in losses]
    if isinstance(operator, MomentumOperator):
        direction = operator.calculate_step(range(len(losses)), matrix, values)
    else:
        direction = combine(operator or ConFIGOperator(), matrix, values)
    accumulate(direction, trainable, reached)


def accumulate(direction: Tensor, parameters: list[Tensor], reached: Sequence[bool]) -> None:
    """Add the parts of a direction to ``.grad``.

    Args:
        direction: (P,).
        parameters: with P entries together.
        reached: which of them the direction is for.

    Raises:
        ValueError: the operator has returned a vector of another length.
    """
    with torch.no_grad():
        parts = list(slices(direction, parameters))
        for (parameter, part), wanted in zip(parts, reached, strict=True):
            if wanted:
                put_gradient(parameter, part, add=True)
