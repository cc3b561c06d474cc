"""Micro-batches: closures that yield a batch in parts, whose graphs never exist at one time.

The Jacobian of each part is taken, and its graph freed, before the closure computes the next part.
Losses add up as those of several processes do.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from hig._jacobian.blocks import DenseBlock, JointJacobian
from hig._jacobian.capture import ForwardPass
from hig._jacobian.engine import EngineResult
from hig._jacobian.stacked import stacked
from hig._step.closure import Closure, weights_of
from hig._step.objective import Objective
from hig._step.row_map import RowMap
from hig._torch.autograd_graph import real_size
from hig._torch.host import DeferredChecks
from hig._torch.random_state import RandomState

__all__ = ["Part", "each_part", "joined", "replayed"]


@dataclass(frozen=True)
class Part:
    """Objective and Jacobian of a micro-batch."""

    objective: Objective
    result: EngineResult


def replayed(closure: Closure, random_state: RandomState) -> Any:
    """Call a closure again with the random numbers of its first call.

    Micro-batches are computed later: they leave the generators where the first call did.
    """
    outcome: Any = random_state.replay(closure)
    if isinstance(outcome, Iterator):
        random_state.restore()
    return outcome


def each_part(stream: Iterator[Any], take: Callable[[Any], Part]) -> list[Part]:
    """Return objective and Jacobian of each micro-batch; the graph of each is freed.

    Args:
        stream: yields ``(loss, prediction)``.
        take: returns the objective and Jacobian of the next one, computed by the function that it
            is given.

    Raises:
        ValueError: there is none, or they differ in their outputs per sample.
    """
    parts: list[Part] = []
    while True:
        try:
            part = take(partial(next, stream))
            _free_graph(part.objective)
        except StopIteration:
            break
        except RuntimeError as error:
            if not parts or "backward through the graph a second time" not in str(error):
                raise
            raise ValueError(
                "micro-batches share a part of their graphs, which is freed after each: compute "
                "everything that depends on the parameters again for each of them"
            ) from error
        parts.append(part)
    if not parts:
        raise ValueError(
            "the closure yielded no micro-batch; yield (loss, prediction) for each part of the "
            "batch, or return it for the whole"
        )
    shapes = {tuple(part.objective.closure_prediction.shape[1:]) for part in parts}
    if len(shapes) > 1:
        raise ValueError(
            f"micro-batches must have the same outputs per sample, got shapes {sorted(shapes)}; "
            "pad them, or take a step for each kind of sample"
        )
    return parts


def joined(
    parts: Sequence[Part], reduction: str, parameters: Sequence[Tensor], names: Sequence[str]
) -> tuple[Objective, EngineResult]:
    """Return the objective and Jacobian of the whole batch.

    Args:
        parts: the micro-batches.
        reduction: "mean" for losses that are means over their samples, or "sum".
        parameters: the trained parameters.
        names: their names in messages.
    """
    if len({part.objective.fewer_rows is None for part in parts}) > 1 or (
        len({part.objective.forward.prediction.shape[1:] for part in parts}) > 1
    ):
        parts = [_with_all_rows(part) for part in parts]
    samples = [len(part.objective.closure_prediction) for part in parts]
    objectives = [
        replace(part.objective, weight=weight)
        for part, weight in zip(parts, weights_of(samples, reduction), strict=True)
    ]
    rows = torch.cat([o.forward.prediction.detach() for o in objectives])
    gradient = torch.cat([o.weight * o.gradient.detach() for o in objectives])
    flat = torch.cat([o.weight * o.flat_gradient for o in objectives])
    losses = torch.stack([o.weight * o.loss.detach().reshape(()) for o in objectives])
    objective = Objective(
        forward=ForwardPass([], rows, parameters, names),
        loss=losses.sum(),
        gradient=gradient,
        flat_gradient=flat,
        checks=DeferredChecks(),
        row_map=_joined_map(objectives),
        least_cut=max(objective.least_cut for objective in objectives),
        parts=objectives,
    )
    columns = list(map(real_size, parameters))
    return objective, stacked([part.result for part in parts], columns)


def _joined_map(objectives: Sequence[Objective]) -> RowMap | None:
    if all(o.row_map is None for o in objectives):
        return None
    maps = [o.row_map or RowMap(o.forward.prediction, o.gradient) for o in objectives]
    gradients = zip(objectives, maps, strict=True)
    directions = [part.directions for part in maps if part.directions is not None]
    roots = None
    if any(part.roots is not None for part in maps):
        roots = torch.cat([_roots(part) for part in maps])
    return RowMap(
        prediction=torch.cat([part.prediction.detach() for part in maps]),
        gradient=torch.cat([o.weight * part.gradient.detach() for o, part in gradients]),
        directions=torch.cat(directions) if directions else None,
        exact=maps[0].exact,
        roots=roots,
    )


def _roots(row_map: RowMap) -> Tensor:
    if row_map.roots is not None:
        return row_map.roots
    return torch.ones_like(row_map.prediction.detach()).reshape(len(row_map.prediction), -1)


def _with_all_rows(part: Part) -> Part:
    """Return a part whose rows are those of its controls with the rows of all outputs."""
    objective, row_map = part.objective, part.objective.row_map
    if row_map is None or row_map.directions is None:
        return part
    jacobian = part.result.jacobian
    samples, count, outputs = row_map.directions.shape
    reduced = jacobian.dense().double().view(samples, count, -1)
    rows = (row_map.directions.double().mT @ reduced).flatten(0, 1)
    whole = JointJacobian([DenseBlock(rows, outputs)], samples, outputs, jacobian.like)
    everything = replace(row_map, directions=None, exact=False)
    gradient = everything.weighted_gradient()
    prediction = row_map.prediction
    weighted = prediction.detach().reshape(gradient.shape)
    return Part(
        replace(
            objective,
            forward=replace(
                objective.forward,
                prediction=weighted if row_map.roots is None else row_map.roots * weighted,
            ),
            gradient=gradient.to(prediction.dtype),
            flat_gradient=gradient.flatten(),
            row_map=everything,
        ),
        replace(part.result, jacobian=whole),
    )


def _free_graph(objective: Objective) -> None:
    """Free what the graph between parameters and prediction has saved.

    The graph of the loss in the outputs stays, for their curvature; it shares no node with that.
    """
    prediction, parameters = objective.closure_prediction, objective.forward.parameters
    torch.autograd.grad(prediction, parameters, torch.zeros_like(prediction), allow_unused=True)
