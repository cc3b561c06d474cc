"""From several losses to ``.grad``."""

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
        non_finite: what to do about gradients that hold NaN or Inf: "raise", or "pass" NaN on to
            ``.grad``, where ``torch.amp.GradScaler`` finds it and leaves the step out; any other
            step along it is refused.
        process_group: see :func:`loss_gradients`; ``.grad`` becomes the same in all processes.

    Raises:
        NonFiniteError: a gradient holds NaN or Inf; ``.grad`` is untouched.
        RankError: another process failed; ``.grad`` is untouched.
        TypeError: losses or parameters are not real floating-point tensors, the losses are no
            list, or the operator is not an operator.
        ValueError: a loss is not a scalar or has no graph, nothing requires a gradient, no loss
            reaches any parameter, the operator has a memory for another number of losses or
            returns another number of entries, or ``non_finite`` is neither "raise" nor "pass".
    """
    trained, losses = trainable(parameters), listed(losses)
    operator = ConFIGOperator() if operator is None else operator
    if not isinstance(operator, MomentumOperator):
        check_operator(operator)
    elif operator.num_vectors != len(losses):
        # With fewer it would wait for ever for the gradients of the others.
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
    """Raise if no loss depends on any parameter.

    Args:
        reached: which parameters some loss depends on.

    Raises:
        ValueError: none of them.
    """
    if not any(reached):
        raise ValueError(
            f"no loss depends on any of the {len(reached)} parameters given; pass those of the "
            "network that the losses were computed with"
        )


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
        watch([p for p, wanted in zip(parameters, reached, strict=True) if wanted], direction)
        for (parameter, part), wanted in zip(parts, reached, strict=True):
            if wanted:
                put_gradient(parameter, part, add=True)
