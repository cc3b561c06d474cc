"""Update of all parameters: of layers along their directions, of the others by Adam."""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from hig._kronecker.adam import AdamStep, adam_step, checked_step_size, update_means
from hig._kronecker.eigenbasis import eigenbasis_steps
from hig._kronecker.grafting import graft_factors
from hig._kronecker.layer_state import LayerParameters, layers_of
from hig._step.param_groups import check_parameters_finite
from hig._step.trial_step import restore_parameters

__all__ = ["Moved", "move", "restored_after_errors"]

Group = dict[str, Any]
States = Mapping[Any, dict[str, Any]]


@dataclass(frozen=True)
class Moved:
    """Parameters that were updated, and how far.

    Attributes:
        by_adam: parameters updated by Adam.
        layers: number of layers that were updated along their directions.
        norm: norm of the whole step per unit of learning rate.
        grafts: factor of each layer's direction.
    """

    by_adam: list[Tensor]
    layers: int
    norm: float
    grafts: list[float]


@dataclass(frozen=True)
class _Directions:
    """Directions of layers, with the squared norms that grafting compares.

    Attributes:
        parts: per layer, the direction of each trained parameter.
        squares: per layer, squared norms of the parts of the direction, scalars.
        adam_squares: per layer, squared norms of the parts of Adam's step, scalars.
    """

    parts: list[list[Tensor]]
    squares: list[list[Tensor]]
    adam_squares: list[list[Tensor]]


def move(
    states: States,
    groups: Sequence[Group],
    flat: Sequence[Tensor],
    gradients: Mapping[Tensor, Tensor],
    graft: str | None,
) -> Moved:
    """Update all parameters that have a gradient; after an error the caller restores them.

    Args:
        states: state of each parameter, updated in place; layers have theirs at the weight.
        groups: parameter groups of the optimiser.
        flat: all parameters of these groups.
        gradients: by parameter, :func:`~hig._kronecker.adam.accumulable`.
        graft: "eigenbasis" if the second moments of layers are in the eigenbasis of their factors;
            see :func:`~hig._kronecker.grafting.graft_factors` for the others.

    Raises:
        NonFiniteError: the step is too large for the dtype of a parameter.
    """
    group_of = {parameter: group for group in groups for parameter in group["params"]}
    layers = layers_of(states, flat, gradients)
    covered = {parameter for layer in layers for parameter in layer.trained}
    alone = [p for p in gradients if graft != "eigenbasis" or p not in covered]
    steps = {p: _adam_step(states[p], gradients[p], group_of[p]) for p in alone}
    if graft == "eigenbasis":
        directions = _in_eigenbasis(states, layers, gradients, group_of)
    else:
        directions = _powers_of_means(layers, steps)
    by_adam = {p: step for p, step in steps.items() if p not in covered}
    others = [step.square() for step in by_adam.values()]
    sums = _sums([*directions.squares, *directions.adam_squares, others])
    squares = sums[: len(layers)]
    grafts = graft_factors(graft, squares, sums[len(layers) : -1])
    for layer, parts, factor in zip(layers, directions.parts, grafts, strict=True):
        for parameter, direction in zip(layer.trained, parts, strict=True):
            size = factor * float(group_of[parameter]["lr"])
            parameter.sub_(direction, alpha=checked_step_size(size, direction))
    for parameter, step in by_adam.items():
        step.move(parameter, float(group_of[parameter]["lr"]))
    check_parameters_finite(gradients, max(float(group["lr"]) for group in groups))
    # Even ordinary steps may overflow float16.
    narrow = [p for p in gradients if p.dtype == torch.float16]
    check_parameters_finite(narrow, math.inf if narrow else None)
    total = sums[-1] + sum(f**2 * square for f, square in zip(grafts, squares, strict=True))
    return Moved(list(by_adam), len(layers), math.sqrt(total), grafts)


def _adam_step(state: dict[str, Any], gradient: Tensor, group: Group) -> AdamStep:
    return adam_step(state, gradient, group["betas"], group["eps"])


def _powers_of_means(
    layers: Sequence[LayerParameters], steps: Mapping[Tensor, AdamStep]
) -> _Directions:
    """Apply the powers of the factors to the mean gradients."""
    parts = []
    for layer in layers:
        layer.state.pop("moment", None)  # of steps in the eigenbasis
        means = [steps[p].mean / steps[p].correction for p in layer.trained]
        parts.append(layer.split(layer.power()(torch.cat(layer.columns(means), -1))))
    squares = [[direction.square().sum() for direction in several] for several in parts]
    adam_squares = [[steps[p].square() for p in layer.trained] for layer in layers]
    return _Directions(parts, squares, adam_squares)


def _in_eigenbasis(
    states: States,
    layers: Sequence[LayerParameters],
    gradients: Mapping[Tensor, Tensor],
    group_of: Mapping[Tensor, Group],
) -> _Directions:
    """Take Adam's steps in the eigenbasis of the factors, with the rest of the power.

    The second moments of a layer have the betas and eps of its weight.
    """
    trained = [p for layer in layers for p in layer.trained]
    own = [states[p] for p in trained]
    layer_gradients = [gradients[p] for p in trained]
    means = update_means(own, layer_gradients, [group_of[p]["betas"][0] for p in trained])
    columns, begin = [], 0
    for layer in layers:
        end = begin + len(layer.trained)
        columns.append((
            layer.columns(layer_gradients[begin:end]), layer.columns(means[begin:end])
        ))  # fmt: skip
        begin = end
    groups = [group_of[layer.weight] for layer in layers]
    steps = eigenbasis_steps(
        [layer.state for layer in layers],
        columns,
        [group["betas"][1] for group in groups],
        [group["eps"] for group in groups],
    )
    parts = [layer.split(step.direction) for layer, step in zip(layers, steps, strict=True)]
    # A bias that is frozen at present takes its part of the norm with it.
    squares = [[step.norm.square()] for step in steps]
    return _Directions(parts, squares, [[step.adam_norm.square()] for step in steps])


def _sums(squares: Sequence[Sequence[Tensor]]) -> list[float]:
    """Sum lists of scalars, with one transfer from the device for all of them."""
    flat = [square for several in squares for square in several]
    values = iter(torch.stack([square.double() for square in flat]).tolist() if flat else ())
    return [sum(next(values) for _ in several) for several in squares]


@contextmanager
def restored_after_errors(parameters: Iterable[Tensor]) -> Iterator[None]:
    """Restore the parameters if anything is raised."""
    parameters = list(parameters)
    start = [parameter.detach().clone() for parameter in parameters]
    with ExitStack() as undo:
        undo.callback(restore_parameters, parameters, start)
        yield
        undo.pop_all()
