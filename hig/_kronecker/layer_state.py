"""The state of a layer: running factors, their power, the direction they give; states loaded."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.parameter import is_lazy

from hig._kronecker.adam import AdamStep, accumulation_dtype
from hig._kronecker.factors import DampedPower, damped_power
from hig._kronecker.layer_factors import LayerFactors
from hig.errors import described

__all__ = [
    "check_state",
    "copied_state",
    "layer_direction",
    "position",
    "refresh_power",
    "take_factors",
]


def take_factors(state: dict[str, Any], factors: LayerFactors, decay: float) -> None:
    """Take factors into running means, from zero; a layer that has changed its shape starts again.

    Args:
        state: of the layer's weight, filled.
        factors: factors of one batch.
        decay: factor by which the past counts.
    """
    if "inputs" not in state or state["inputs"].shape != factors.inputs.shape:
        state["updates"] = 0
        state["inputs"] = torch.zeros_like(factors.inputs)
        state["outputs"] = torch.zeros_like(factors.outputs)
        state.pop("scale", None)
    state["updates"] += 1
    state["inputs"].lerp_(factors.inputs, 1 - decay)
    state["outputs"].lerp_(factors.outputs, 1 - decay)


def refresh_power(state: dict[str, Any], decay: float, power: float, damping: float) -> None:
    """Decompose the running factors of a layer.

    Args:
        state: of the layer's weight, filled.
        decay: factor by which the past counts in them.
        power: p of :func:`hig._kronecker.factors.damped_power`.
        damping: the damping there.
    """
    correction = 1 - decay ** state["updates"]
    outputs, inputs = state["outputs"] / correction, state["inputs"] / correction
    damped = damped_power(outputs, inputs, power, damping)
    state["output_basis"], state["input_basis"] = damped.outputs, damped.inputs
    state["scale"] = damped.scale


def layer_direction(
    state: Mapping[str, Any], steps: Mapping[Tensor, AdamStep], weight: Tensor, bias: Tensor | None
) -> dict[Tensor, Tensor]:
    """The preconditioned mean gradient of a layer, by parameter.

    Args:
        state: of the weight, with a power.
        steps: the moments of all parameters.
        weight: the weight.
        bias: its bias, None without.
    """
    power = DampedPower(state["output_basis"], state["input_basis"], state["scale"])
    groups, fan_out, _ = power.scale.shape
    matrix = (steps[weight].mean / steps[weight].correction).reshape(groups, fan_out, -1)
    trained = bias is not None and bias in steps
    if bias is not None:  # frozen since the factors were made: no gradient, no step
        column = steps[bias].mean / steps[bias].correction if trained else matrix.new_zeros(())
        matrix = torch.cat([matrix, column.expand(bias.shape).reshape(groups, fan_out, 1)], -1)
    directions = power(matrix)
    if bias is None:
        return {weight: directions.view_as(weight)}
    parts = {weight: directions[..., :-1].reshape(weight.shape)}
    return parts | ({bias: directions[..., -1].reshape(bias.shape)} if trained else {})


def position(bias: Tensor | None, flat: Sequence[Tensor]) -> int:
    """Where the bias stands among all parameters, which survives saving; -1 for none."""
    return next((i for i, parameter in enumerate(flat) if parameter is bias), -1)


def check_state(state_dict: object, flat: Sequence[Tensor]) -> None:
    """Raise unless a state is one of this optimiser, for parameters of the same shapes.

    Args:
        state_dict: what is to be loaded.
        flat: all parameters of the optimiser.

    Raises:
        TypeError: it is not a dictionary.
        ValueError: it is the state of another optimiser, or of other parameters.
    """
    remedy = "load what KroneckerHIG.state_dict() gave"
    if not isinstance(state_dict, dict):
        raise TypeError(f"state_dict must be a dictionary, got {described(state_dict)}; {remedy}")
    state = state_dict.get("state")
    count = state.get("count") if isinstance(state, dict) else None
    if not isinstance(count, dict) or "steps" not in count or "param_groups" not in state_dict:
        raise ValueError(
            f"the state holds no count of steps: it is that of another optimizer; {remedy}"
        )
    for index, parameter in _saved(state_dict, flat):
        mean = state_dict["state"][index].get("exp_avg")
        if mean is None or is_lazy(parameter):
            continue
        expected = (*parameter.shape, 2) if parameter.is_complex() else tuple(parameter.shape)
        if tuple(mean.shape) != expected:
            raise ValueError(
                f"the state is that of other parameters: the mean gradient of parameter {index} "
                f"has shape {tuple(mean.shape)}, the optimizer's needs {expected}; load it into "
                "an optimizer of the same network"
            )


def copied_state(state_dict: Mapping[str, Any], flat: Sequence[Tensor]) -> dict[Any, Any]:
    """Copies of what a state holds, by parameter, in the dtype that this optimiser keeps it in.

    torch itself would share the tensors, and round what half-precision parameters have to theirs.

    Args:
        state_dict: checked.
        flat: all parameters of the optimiser.
    """
    copied: dict[Any, Any] = {"count": dict(state_dict["state"]["count"])}
    for index, parameter in _saved(state_dict, flat):
        dtype, device = accumulation_dtype(parameter.dtype), parameter.device
        copied[parameter] = {
            name: value.to(device, dtype, copy=True) if isinstance(value, Tensor) else value
            for name, value in state_dict["state"][index].items()
        }
    return copied


def _saved(state_dict: Mapping[str, Any], flat: Sequence[Tensor]) -> Iterator[tuple[Any, Tensor]]:
    """The keys of saved states, with their parameters; torch checks the numbers of these."""
    keys = [key for group in state_dict["param_groups"] for key in group["params"]]
    for key, parameter in zip(keys, flat, strict=False):
        if key in state_dict["state"]:
            yield key, parameter
