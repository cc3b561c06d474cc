"""Why a step with Kronecker factors leaves parameters to Adam, in words."""

import operator
import warnings
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.parameter import is_lazy

from hig._jacobian.capture import Capture, LayerUse, weight_matrix_shape
from hig._kronecker.layer_factors import LayerFactors, with_leading_axis
from hig._kronecker.report import grouped, listed

__all__ = ["Explanation", "ParameterCalls", "parameter_names"]

_LAYERS = (F.linear, F.conv1d, F.conv2d, F.conv3d)
_FUSED = (
    "gru", "gru_cell", "lstm", "lstm_cell", "multi_head_attention_forward", "rnn_relu",
    "rnn_relu_cell", "rnn_tanh", "rnn_tanh_cell",
)  # fmt: skip
_DOUBLE_BACKWARD = "derivatives (autograd.grad with create_graph=True)"
_FORWARD_MODE = "derivatives (forward mode)"
# The function of torch itself: compilers trace each function of Python that they meet in a mode.
_wrapped: Callable[[Tensor], bool] = torch._C._functorch.is_functorch_wrapped_tensor

_IN_TRANSFORM = "inside a transform of torch.func (vmap, grad, jvp or another)"


class ParameterCalls(Capture):
    """Record layer uses, and which other functions of torch take the watched parameters.

    Args:
        parameters: the tensors to watch, by identity.

    Attributes:
        functions: by the id of a parameter the other functions that take it, in words.
        of_biases: by the id of a bias what the weight of its layer is, if it is not watched.
        derivatives: how derivatives were taken that the prediction may depend on, in words.
    """

    def __init__(self, parameters: Iterable[Tensor]):
        parameters = list(parameters)
        super().__init__(parameters)
        self._ids = {id(parameter) for parameter in parameters}
        self.functions: dict[int, list[str]] = {}
        self.of_biases: dict[int, str] = {}
        self.derivatives: dict[str, None] = {}

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        """Run ``func`` and note what it does with watched parameters."""
        known = len(self.uses)
        output = super().__torch_function__(func, types, args, kwargs)
        kwargs = kwargs or {}
        if func is torch.autograd.grad:
            if kwargs.get("create_graph", args[4:5] == (True,)):
                self.derivatives[_DOUBLE_BACKWARD] = None
            return output
        if func is torch._VF._make_dual:
            self.derivatives[_FORWARD_MODE] = None
        taken = self._watched_among(args)
        if kwargs:
            taken += self._watched_among(kwargs.values())
        if taken and _carries_graph(output):
            self._note_function(func, taken, self.uses[known:], output)
            if func in _LAYERS:
                self._note_weight(args[1] if len(args) > 1 else kwargs["weight"])
        return output

    def _watched_among(self, values: Iterable[Any]) -> list[Tensor]:
        """The watched parameters among arguments and in lists of them, wrapped or not."""
        inside = torch._C._functorch.peek_interpreter_stack() is not None
        watched: list[Tensor] = []
        for value in values:
            if id(value) in self._ids:
                watched.append(value)
            elif isinstance(value, list | tuple):
                watched += [item for item in value if id(item) in self._ids]
            elif inside and isinstance(value, Tensor) and id(_unwrapped(value)) in self._ids:
                watched.append(value)
        return watched

    def signature(self) -> object:
        """A value that is equal where computations use the parameters in the same functions."""
        uses = frozenset((id(use.weight), id(use.bias)) for use in self.uses)
        others = frozenset((key, *names) for key, names in self.functions.items())
        return uses, others, tuple(self.derivatives)

    def _note_function(
        self, func: Any, taken: Sequence[Tensor], uses: Sequence[LayerUse], output: Any
    ) -> None:
        covered = {id(part) for use in uses for part in (use.weight, use.bias)}
        for value in taken:
            parameter = _unwrapped(value)
            if id(parameter) in covered or output is value:
                continue
            text = _name(func)
            if any(map(_wrapped, _tensors(output))):
                text = f"{text} {_IN_TRANSFORM}"
            elif func in _LAYERS:
                text = f"{text} as a tensor of shape {tuple(parameter.shape)}"
            elif text in _FUSED:
                text = f"{text}, a fused kernel"
            names = self.functions.setdefault(id(parameter), [])
            if text not in names:
                names.append(text)

    def _note_weight(self, weight: Any) -> None:
        """Say of the bias of the last use what its weight is, if the optimiser has it not."""
        use = self.uses[-1] if self.uses else None
        if use is not None and use.bias is not None and use.weight is None:
            computed = isinstance(weight, Tensor) and weight.grad_fn is not None
            text = "computed from other tensors" if computed else "not trained by this optimiser"
            self.of_biases[id(use.bias)] = text


@dataclass
class Explanation:
    """Reasons of one optimiser, kept from one update of the factors to the next.

    Attributes:
        signature: of the computation that they were found for; None before the first.
        left: the parameters without factors there.
        reasons: why they have none, by their position among all parameters.
        remarks: on layers that have.
        warned: whether the user has been warned that no layer was found.
        last: parameters that were asked for since, and what was answered.
    """

    signature: object = None
    left: list[Tensor] = field(default_factory=list)
    reasons: dict[int, str] = field(default_factory=dict)
    remarks: list[str] = field(default_factory=list)
    warned: bool = False
    last: tuple[list[Tensor], dict[str, str]] = field(default_factory=lambda: ([], {}))

    def update(
        self,
        calls: ParameterCalls,
        factors: Sequence[LayerFactors],
        gradients: Mapping[Tensor, Tensor],
        groups: Sequence[Mapping[str, Any]],
        thorough: bool,
    ) -> None:
        """Find the reasons for one computation, unless they are those of the last one.

        Args:
            calls: what was seen of it.
            factors: of its layers.
            gradients: those of all parameters that it depends on.
            groups: all parameters of the optimiser.
            thorough: whether the factors say of which parameters they describe a part.
        """
        signature = calls.signature()
        layered = {id(p) for layer_factors in factors for p in layer_factors.layer.parameters}
        left = [p for p in gradients if id(p) not in layered]
        known = signature == self.signature
        if (
            known
            and not thorough
            and len(left) == len(self.left)
            and all(map(operator.is_, left, self.left))
        ):
            return
        names = parameter_names(groups)
        positions = {parameter: index for index, parameter in enumerate(names)}
        self.left, self.last = left, ([], {})
        self.reasons = {positions[p]: _why_left(p, calls, layered) for p in left}
        if thorough:
            self.signature = signature
            partial: dict[str, list[str]] = {}
            for parameter in (p for layer_factors in factors for p in layer_factors.partial):
                partial.setdefault(_other_ways(parameter, calls), []).append(names[parameter])
            self.remarks = [
                f"the factors of {listed(several)} are those of linear and convolution calls "
                f"alone, the prediction depends on them {ways} too"
                for ways, several in partial.items()
            ]

    def of(
        self, parameters: Iterable[Tensor], groups: Sequence[Mapping[str, Any]]
    ) -> dict[str, str]:
        """Why these parameters of the optimiser's groups are left to Adam, by name."""
        parameters = list(parameters)
        last, answers = self.last
        if len(last) == len(parameters) and all(map(operator.is_, last, parameters)):
            return dict(answers)
        names = parameter_names(groups)
        positions = {parameter: index for index, parameter in enumerate(names)}
        unknown = (
            "not used by the closure when the factors were last updated"
            if self.signature is not None
            else "the factors have not been updated since this optimizer was made"
        )
        answers = {names[p]: self.reasons.get(positions[p], unknown) for p in parameters}
        self.last = parameters, answers
        return dict(answers)

    def warn(self, left: Mapping[str, str], stacklevel: int) -> None:
        """Warn, once, that no layer was found."""
        if self.warned:
            return
        self.warned = True
        warnings.warn(
            "KroneckerHIG found no linear or convolution layer that it can precondition, so that "
            f"its steps are Adam's; {'; '.join(grouped(left))}",
            stacklevel=stacklevel + 1,
        )


def parameter_names(groups: Iterable[Mapping[str, Any]]) -> dict[Tensor, str]:
    """Names of the parameters of groups, else position and shape."""
    names: dict[Tensor, str] = {}
    for group in groups:
        group_names = group.get("param_names", [None] * len(group["params"]))
        for parameter, name in zip(group["params"], group_names, strict=True):
            shape = "uninitialized" if is_lazy(parameter) else tuple(parameter.shape)
            names.setdefault(parameter, name or f"parameter {len(names)} {shape}")
    return names


def _why_left(parameter: Tensor, calls: ParameterCalls, layered: Collection[int]) -> str:
    """Why a parameter that the prediction depends on is part of no layer with factors."""
    if parameter.is_complex():
        return "complex, and factors are real"
    as_weight = [use for use in calls.uses if use.weight is parameter]
    as_bias = [use for use in calls.uses if use.bias is parameter]
    if as_weight and as_bias:
        return "used both as a weight and as a bias"
    if as_weight:
        return _why_weight(as_weight)
    if as_bias:
        return _why_bias(parameter, as_bias, calls, layered)
    if names := calls.functions.get(id(parameter)):
        return f"used by {listed(names)}; only linear and convolution layers have factors"
    return (
        "no linear or convolution call was seen (calls are hidden in compiled code and "
        "in the forward functions of torch.autograd.Function)"
    )


def _why_weight(uses: Sequence[LayerUse]) -> str:
    uses = [with_leading_axis(use) for use in uses]
    shapes = {(use.convolution is None, *weight_matrix_shape(use)) for use in uses}
    if len(shapes) > 1:
        groups = ", ".join(str(number) for number in sorted({use.groups for use in uses}))
        return f"used by layers of different shape (groups of channels: {groups})"
    return (
        "the prediction depends on derivatives of the layer (autograd.grad with "
        "create_graph=True), not on its outputs"
    )


def _why_bias(
    bias: Tensor, uses: Sequence[LayerUse], calls: ParameterCalls, layered: Collection[int]
) -> str:
    if (weight := calls.of_biases.get(id(bias))) is not None:
        return f"bias of a layer whose weight is {weight}"
    if any(id(use.weight) not in layered for use in uses):
        return "bias of a layer whose weight is left to Adam"
    return "bias of several layers, or of only some calls of its layer"


def _other_ways(parameter: Tensor, calls: ParameterCalls) -> str:
    """Through what, beside calls of layers, the prediction depends on a parameter."""
    ways = [*calls.functions.get(id(parameter), ()), *calls.derivatives]
    return f"through {listed(ways)}" if ways else "in a way that was not seen"


def _tensors(output: Any) -> list[Tensor]:
    """The tensors that a function returns, alone or in a list or tuple."""
    values = output if isinstance(output, list | tuple) else (output,)
    return [value for value in values if isinstance(value, Tensor)]


def _unwrapped(tensor: Tensor) -> Tensor:
    """The tensor that transforms of torch.func have wrapped."""
    while _wrapped(tensor):
        tensor = torch._C._functorch.get_unwrapped(tensor)
    return tensor


def _carries_graph(output: Any) -> bool:
    return any(tensor.requires_grad or _wrapped(tensor) for tensor in _tensors(output))


def _name(func: Any) -> str:
    """The name by which users call a function; properties come as the getter of a descriptor."""
    name = getattr(func, "__name__", type(func).__name__)
    if name == "__get__":
        name = getattr(getattr(func, "__self__", None), "__name__", name)
    return name.strip("_")
