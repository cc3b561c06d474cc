"""State of a layer: running factors, their power and the direction; loading of saved states."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.parameter import is_lazy

from hig._kronecker.adam import accumulation_dtype
from hig._kronecker.eigenbasis import refresh_eigenbasis
from hig._kronecker.factors import DampedPower, damped_power
from hig._kronecker.layer_factors import LayerFactors
from hig.errors import described

__all__ = [
    "LayerParameters",
    "check_state",
    "copied_state",
    "forget_factors",
    "layers_of",
    "outline",
    "position",
    "refresh_power",
    "take_factors",
]


_BASES = ("scale", "output_basis", "input_basis", "moment")


def take_factors(state: dict[str, Any], factors: LayerFactors, decay: float) -> None:
    """Update running means with factors; they start again if the layer has changed its shape."""
    if "inputs" not in state or state["inputs"].shape != factors.inputs.shape:
        state["updates"] = 0
        state["inputs"] = torch.zeros_like(factors.inputs)
        state["outputs"] = torch.zeros_like(factors.outputs)
        for name in _BASES:
            state.pop(name, None)
    state["updates"] += 1
    state["inputs"].lerp_(factors.inputs, 1 - decay)
    state["outputs"].lerp_(factors.outputs, 1 - decay)


def forget_factors(state: dict[str, Any]) -> None:
    """Drop the factors of a parameter that is the bias of another layer from now on."""
    for name in ("bias", "inputs", "outputs", "updates", *_BASES):
        state.pop(name, None)


def refresh_power(
    state: dict[str, Any], decay: float, power: float, damping: float, graft: str | None
) -> None:
    """Decompose a layer's running factors.

    Approximately by :func:`~hig._kronecker.eigenbasis.refresh_eigenbasis` if ``graft`` is
    "eigenbasis", else in full by :func:`~hig._kronecker.factors.damped_power`.
    """
    # As in Adam: the means start at zero, and hold the weight 1 - decay^n after n updates.
    correction = 1 - decay ** state["updates"]
    outputs, inputs = state["outputs"] / correction, state["inputs"] / correction
    if graft == "eigenbasis":
        refresh_eigenbasis(state, outputs, inputs, power, damping)
        return
    damped = damped_power(outputs, inputs, power, damping)
    state["output_basis"], state["input_basis"] = damped.outputs, damped.inputs
    state["scale"] = damped.scale


@dataclass(frozen=True)
class LayerParameters:
    """Parameters of a layer with factors.

    Attributes:
        weight: its weight.
        bias: its bias, or None.
        trained: those of the two that have a gradient.
        state: state of the layer, which lies at its weight.
    """

    weight: Tensor
    bias: Tensor | None
    trained: tuple[Tensor, ...]
    state: dict[str, Any]

    def columns(self, values: Sequence[Tensor]) -> list[Tensor]:
        """Arrange values of the trained parameters as columns of a matrix (groups, out, in)."""
        groups, fan_out, _ = self.state["scale"].shape
        # Output channels are ordered by group: (groups * out, in, *kernel) -> (groups, out,
        # in * ...), the order of the patches. The bias is the last column, as in `input_factor`.
        columns = [value.reshape(groups, fan_out, -1) for value in values]
        if self.bias is not None and len(values) == 1:
            # Frozen since the factors were made: no gradient, no step.
            columns.append(columns[0].new_zeros(groups, fan_out, 1))
        return columns

    def split(self, matrix: Tensor) -> list[Tensor]:
        """Return the parts of a matrix (groups, out, in) that belong to the trained parameters."""
        if self.bias is None:
            return [matrix.view_as(self.weight)]
        parts = [matrix[..., :-1].reshape(self.weight.shape)]
        if len(self.trained) > 1:
            parts.append(matrix[..., -1].reshape(self.bias.shape))
        return parts

    def power(self) -> DampedPower:
        """Return the power of the factors."""
        names = ("output_basis", "input_basis", "scale")
        return DampedPower(*(self.state[name] for name in names))


def layers_of(
    states: Mapping[Any, dict[str, Any]],
    flat: Sequence[Tensor],
    gradients: Mapping[Tensor, Tensor],
) -> list[LayerParameters]:
    """Find the layers with factors whose weight has a gradient.

    Args:
        states: state of each parameter.
        flat: all parameters of the optimiser.
        gradients: by parameter.
    """
    layers = []
    for weight in gradients:
        state = states[weight]
        if "scale" in state:
            bias = None if state["bias"] < 0 else flat[state["bias"]]
            trained = (weight,) if bias is None or bias not in gradients else (weight, bias)
            layers.append(LayerParameters(weight, bias, trained, state))
    return layers


def position(bias: Tensor | None, flat: Sequence[Tensor]) -> int:
    """Return the index of a bias among all parameters, which can be saved; -1 without a bias."""
    return next((i for i, parameter in enumerate(flat) if parameter is bias), -1)


def outline(state: Mapping[str, Any]) -> list[tuple[str, object]]:
    """Return the counts of a state and the shapes of its tensors, by name."""
    shapes = {n: tuple(v.shape) if isinstance(v, Tensor) else v for n, v in state.items()}
    return sorted(shapes.items())


def check_state(state_dict: object, flat: Sequence[Tensor]) -> None:
    """Raise unless a state is one of this optimiser, for parameters of the same shapes.

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
            f"the state has no count of steps: it is that of another optimizer; {remedy}"
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
    """Copy a state, by parameter, in the dtype that this optimiser uses for it.

    torch itself would share the tensors, and round the state of half-precision parameters.
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
    """Yield keys of saved states with their parameters; torch checks that their numbers match."""
    keys = [key for group in state_dict["param_groups"] for key in group["params"]]
    for key, parameter in zip(keys, flat, strict=False):
        if key in state_dict["state"]:
            yield key, parameter
