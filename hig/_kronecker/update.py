"""Update of all parameters: of layers along their directions, of the others by Adam."""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from itertools import islice
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


# Per layer: the direction of each trained parameter, the norms of parts of the direction, and those
# of parts of Adam's step.
_Directions = tuple[list[list[Tensor]], list[list[Tensor]], list[list[Tensor]]]


def move(
    states: States,
    groups: Sequence[Group],
    flat: Sequence[Tensor],
    gradients: Mapping[Tensor, Tensor],
    graft: str | None,
    decay: float,
) -> Moved:
    """Update all parameters that have a gradient; after an error the caller restores them.

    Args:
        states: state of each parameter, updated in place; layers have theirs at the weight.
        groups: parameter groups of the optimiser.
        flat: all parameters of these groups.
        gradients: by parameter, :func:`~hig._kronecker.adam.accumulable`.
        graft: "eigenbasis" if the second moments of layers are in the eigenbasis of their factors;
            see :func:`~hig._kronecker.grafting.graft_factors` for the others.
        decay: decay of second moments in the eigenbasis.

    Raises:
        NonFiniteError: the step is too large for the dtype of a parameter.
    """
    # By id: hashing a tensor costs ten times as much.
    group_of = {id(parameter): group for group in groups for parameter in group["params"]}
    layers = layers_of(states, flat, gradients)
    covered = {id(parameter) for layer in layers for parameter in layer.trained}
    alone = [p for p in gradients if graft != "eigenbasis" or id(p) not in covered]
    steps = {p: _adam_step(states[p], gradients[p], group_of[id(p)]) for p in alone}
    if graft == "eigenbasis":
        parts, norms, adam_norms = _in_eigenbasis(states, layers, gradients, group_of, decay)
    else:
        parts, norms, adam_norms = _powers_of_means(layers, steps)
    by_adam = {p: step for p, step in steps.items() if id(p) not in covered}
    others = [step.norm() for step in by_adam.values()]
    sums = _sums_of_squares([*norms, *adam_norms, others])
    squares = sums[: len(layers)]
    grafts = graft_factors(graft, squares, sums[len(layers) : -1])
    for layer, directions, factor in zip(layers, parts, grafts, strict=True):
        for parameter, direction in zip(layer.trained, directions, strict=True):
            size = factor * float(group_of[id(parameter)]["lr"])
            parameter.sub_(direction, alpha=checked_step_size(size, direction))
    for parameter, step in by_adam.items():
        step.move(parameter, float(group_of[id(parameter)]["lr"]))
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
    norms = [list(torch._foreach_norm(several)) for several in parts]
    return parts, norms, [[steps[p].norm() for p in layer.trained] for layer in layers]


def _in_eigenbasis(
    states: States,
    layers: Sequence[LayerParameters],
    gradients: Mapping[Tensor, Tensor],
    group_of: Mapping[int, Group],
    decay: float,
) -> _Directions:
    """Take Adam's steps in the eigenbasis of the factors, with the rest of the power.

    A layer has the eps of its weight.
    """
    trained = [p for layer in layers for p in layer.trained]
    own = [states[p] for p in trained]
    layer_gradients = [gradients[p] for p in trained]
    means = update_means(own, layer_gradients, [group_of[id(p)]["betas"][0] for p in trained])
    columns, begin = [], 0
    for layer in layers:
        end = begin + len(layer.trained)
        columns.append(layer.columns(layer_gradients[begin:end]) + layer.columns(means[begin:end]))
        begin = end
    eps = [group_of[id(layer.weight)]["eps"] for layer in layers]
    steps = eigenbasis_steps([layer.state for layer in layers], columns, decay, eps)
    parts = [layer.split(whole) for layer, whole in zip(layers, steps.directions, strict=True)]
    # A bias that is frozen at present takes its part of the norm with it.
    return parts, [[norm] for norm in steps.norms], [[norm] for norm in steps.adam_norms]


def _sums_of_squares(norms: Sequence[Sequence[Tensor]]) -> list[float]:
    """Add up squares of lists of scalars, with one transfer from the device for all of them."""
    flat = [norm for several in norms for norm in several]
    values = iter(torch.stack(flat).tolist() if flat else ())
    return [sum(norm * norm for norm in islice(values, len(several))) for several in norms]


@contextmanager
def restored_after_errors(parameters: Iterable[Tensor]) -> Iterator[None]:
    """Restore the parameters if anything is raised."""
    parameters = list(parameters)
    # Copies of all by one call; times one is exact.
    detached = [parameter.detach() for parameter in parameters]
    start = torch._foreach_mul(detached, 1.0) if detached else ()
    with ExitStack() as undo:
        undo.callback(restore_parameters, parameters, start)
        yield
        undo.pop_all()
