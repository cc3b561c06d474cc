"""Backward pass of several losses: their combined direction is added to ``.grad``."""

from collections.abc import Sequence

import torch
from torch import Tensor

from hig._torch.ranks import ProcessGroup, Ranks, check_process_group
from hig.arguments import check_choice
from hig.conflictfree._config import ConFIGOperator
from hig.conflictfree._gradient_operator import Operator, combine
from hig.conflictfree._loss_gradients import differentiate, listed
from hig.conflictfree._momentum_operator import MomentumOperator
from hig.conflictfree._non_finite import NON_FINITE, require_finite, watch
from hig.conflictfree._parameter_vectors import Parameters, put_gradient, slices, trainable
from hig.conflictfree._validation import check_operator

__all__ = ["accumulate", "backward", "require_reached"]


def backward(
    losses: Sequence[Tensor] | Tensor,
    parameters: Parameters,
    operator: Operator | MomentumOperator | None = None,
    *,
    method: str = "auto",
    retain_graph: bool = False,
    non_finite: str = "raise",
    process_group: ProcessGroup = "auto",
) -> None:
    """Add a conflict-free direction of several losses to ``.grad``, as ``loss.backward()`` would.

    Any optimiser, scheduler, gradient clipping or trainer can follow::

        operator = ConFIGOperator()
        for batch in data:
            optimizer.zero_grad()
            losses = [loss_function(network, batch) for loss_function in loss_functions]
            hig.conflictfree.backward(losses, network.parameters(), operator)
            optimizer.step()

    Args:
        losses: m scalars, or a tensor (m,), each with a graph.
        parameters: a module, or an iterable of tensors, in and outside of modules. The gradient
            of a loss that does not depend on a parameter is zero there; a parameter that no loss
            depends on, or that requires no gradient, is unchanged.
        operator: an operator, with a memory or without, or any callable from an (m, P) matrix to
            (P,), such as a TorchJD aggregator; ``ConFIGOperator()`` if None. Use the same object
            in all steps: it holds the memory and the report.
        method: see :func:`loss_gradients`.
        retain_graph: keep the graphs of the losses for another pass.
        non_finite: how to handle gradients that hold NaN or Inf: "raise", or "pass" NaN on to
            ``.grad``, where ``torch.amp.GradScaler`` finds it and skips the step; any other step
            along it is refused.
        process_group: see :func:`loss_gradients`; ``.grad`` becomes the same on all process ranks.

    Raises:
        NonFiniteError: a gradient holds NaN or Inf; ``.grad`` is unchanged.
        RankError: another process rank failed; ``.grad`` is unchanged.
        TypeError: losses or parameters are not real floating-point tensors, the losses are not a
            list, or ``operator`` is not an operator.
        ValueError: a loss is not a scalar or has no graph, nothing requires a gradient, no loss
            depends on any parameter, the operator has a memory for another number of losses or
            returns another number of entries, or ``non_finite`` is neither "raise" nor "pass".
    """
    trained, losses = trainable(parameters), listed(losses)
    operator = ConFIGOperator() if operator is None else operator
    if not isinstance(operator, MomentumOperator):
        check_operator(operator)
    elif operator.num_vectors != len(losses):
        # With fewer losses, directions would stay zero: the operator waits for all gradients.
        raise ValueError(
            f"the operator is for {operator.num_vectors} losses, got {len(losses)}; give all "
            f"losses in every step, or construct {type(operator).__name__}({len(losses)}); for "
            "one loss per step there is AlternatingBackward"
        )
    check_choice(non_finite, "non_finite", NON_FINITE)
    check_process_group(process_group)
    matrix, reached = differentiate(losses, trained, method, retain_graph, Ranks(process_group))
    require_reached(reached)
    values = [loss.detach() for loss in losses]
    if isinstance(operator, MomentumOperator):
        direction = operator.calculate_step(range(len(losses)), matrix, values)
    else:
        direction = combine(operator, matrix, values, non_finite)
    if non_finite == "raise":
        require_finite(direction)
    accumulate(direction, trained, reached)


def require_reached(reached: Sequence[bool]) -> None:
    """Raise a ValueError unless some loss depends on a parameter, one flag for each."""
    if not any(reached):
        raise ValueError(
            f"no loss depends on any of the {len(reached)} parameters given; pass those of the "
            "network that the losses were computed with"
        )


def accumulate(direction: Tensor, parameters: list[Tensor], reached: Sequence[bool]) -> None:
    """Add the parts of a direction (P,) to ``.grad`` of the parameters that are reached.

    Raises a ValueError if the operator has returned a vector of another length.
    """
    with torch.no_grad():
        parts = list(slices(direction, parameters))
        watch([p for p, wanted in zip(parameters, reached, strict=True) if wanted], direction)
        for (parameter, part), wanted in zip(parts, reached, strict=True):
            if wanted:
                put_gradient(parameter, part, add=True)
