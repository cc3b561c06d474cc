"""Update of all parameters: of layers along their directions, of the others by Adam."""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from hig._kronecker.adam import AdamStep, adam_step, checked_step_size, update_means
from hig._kronecker.eigenbasis import EigenbasisStep, eigenbasis_steps
from hig._kronecker.grafting import Squares, graft_factors
from hig._kronecker.layer_state import LayerParameters, layers_of
from hig._step.param_groups import check_parameters_finite
from hig._step.trial_step import restore_parameters

__all__ = ["Moved", "move", "restored_after_errors"]

Group = dict[str, Any]
Directions = list[dict[Tensor, Tensor]]


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


def move(
    states: Mapping[Any, dict[str, Any]],
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
        directions, squares, adam_squares = _eigenbasis(states, layers, gradients, group_of)
    else:
        directions, squares, adam_squares = _powers_of_means(layers, steps)
    by_adam = {p: step for p, step in steps.items() if p not in covered}
    others = [step.square() for step in by_adam.values()]
    grafts, norm = graft_factors(graft, squares, adam_squares, others)
    for direction_of, factor in zip(directions, grafts, strict=True):
        for parameter, direction in direction_of.items():
            size = factor * float(group_of[parameter]["lr"])
            parameter.sub_(direction, alpha=checked_step_size(size, direction))
    for parameter, step in by_adam.items():
        step.move(parameter, float(group_of[parameter]["lr"]))
    check_parameters_finite(gradients, max(float(group["lr"]) for group in groups))
    # Even ordinary steps may overflow float16.
    narrow = [p for p in gradients if p.dtype == torch.float16]
    check_parameters_finite(narrow, math.inf if narrow else None)
    return Moved(list(by_adam), len(layers), norm, grafts)


def _adam_step(state: dict[str, Any], gradient: Tensor, group: Group) -> AdamStep:
    return adam_step(state, gradient, group["betas"], group["eps"])


def _powers_of_means(
    layers: Sequence[LayerParameters], steps: Mapping[Tensor, AdamStep]
) -> tuple[Directions, Squares, Squares]:
    """Return powers of the mean gradients, and the squared norms of these and of Adam's steps."""
    directions = []
    for layer in layers:
        layer.state.pop("moment", None)
        means = {p: steps[p].mean / steps[p].correction for p in layer.trained}
        directions.append(layer.split(layer.power()(layer.joined(means))))
    squares = [[direction.square().sum() for direction in d.values()] for d in directions]
    return directions, squares, [[steps[p].square() for p in layer.trained] for layer in layers]


def _eigenbasis(
    states: Mapping[Any, dict[str, Any]],
    layers: Sequence[LayerParameters],
    gradients: Mapping[Tensor, Tensor],
    group_of: Mapping[Tensor, Group],
) -> tuple[Directions, Squares, Squares]:
    """Return directions by moments in the eigenbasis, and the squared norms with and without power.

    The second moments of a layer have the betas and eps of its weight.
    """
    trained = [p for layer in layers for p in layer.trained]
    firsts = [group_of[p]["betas"][0] for p in trained]
    means = update_means([states[p] for p in trained], [gradients[p] for p in trained], firsts)
    mean_of = dict(zip(trained, means, strict=True))
    steps: dict[int, EigenbasisStep] = {}
    settings = [(group_of[la.weight]["betas"][1], group_of[la.weight]["eps"]) for la in layers]
    for beta, eps in dict.fromkeys(settings):
        numbers = [n for n, its in enumerate(settings) if its == (beta, eps)]
        found = eigenbasis_steps(
            [layers[n].state for n in numbers],
            [layers[n].joined(gradients) for n in numbers],
            [layers[n].joined(mean_of) for n in numbers],
            beta,
            eps,
        )
        steps.update(zip(numbers, found, strict=True))
    ordered = [steps[n] for n in range(len(layers))]
    directions = [la.split(step.direction) for la, step in zip(layers, ordered, strict=True)]
    # A bias that is frozen at present takes its part of the norm with it.
    squares = [[step.norm.square()] for step in ordered]
    return directions, squares, [[step.adam_norm.square()] for step in ordered]


@contextmanager
def restored_after_errors(parameters: Iterable[Tensor]) -> Iterator[None]:
    """Restore the parameters if anything is raised."""
    parameters = list(parameters)
    start = [parameter.detach().clone() for parameter in parameters]
    with ExitStack() as undo:
        undo.callback(restore_parameters, parameters, start)
        yield
        undo.pop_all()
