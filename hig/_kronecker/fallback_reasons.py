"""Reasons why a step with Kronecker factors leaves parameters to Adam, in words."""

import json
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

_LAYERS = frozenset({F.linear, F.conv1d, F.conv2d, F.conv3d})
_DERIVATIVES = frozenset({torch.autograd.grad, torch._VF._make_dual})
_SEQUENCES = (list, tuple)
# The innermost transform of torch.func, or None outside of all.
_peek: Callable[[], object] = torch._C._functorch.peek_interpreter_stack
_FUSED = (
    "gru", "gru_cell", "lstm", "lstm_cell", "multi_head_attention_forward", "rnn_relu",
    "rnn_relu_cell", "rnn_tanh", "rnn_tanh_cell",
)  # fmt: skip
_DOUBLE_BACKWARD = "derivatives (autograd.grad with create_graph=True)"
_FORWARD_MODE = "derivatives (forward mode)"
# The function of torch itself: inside a mode, compilers trace into each Python function.
_wrapped: Callable[[Tensor], bool] = torch._C._functorch.is_functorch_wrapped_tensor

_IN_TRANSFORM = "inside a transform of torch.func (vmap, grad, jvp or another)"


class ParameterCalls(Capture):
    """Capture of layer uses, and of other torch functions that take the watched parameters.

    Attributes:
        functions: names of the other functions that take a parameter, by its id.
        of_biases: description of the weight of a layer that is not watched, by the id of its bias.
        derivatives: kinds of derivatives that the prediction may depend on, in words.
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
        if func in _LAYERS:
            return self._call_layer(func, types, args, kwargs or {})
        output = func(*args, **kwargs) if kwargs else func(*args)
        # Simulators call thousands of functions, nearly all of them without a parameter.
        if func not in _DERIVATIVES and not kwargs and _peek() is None:
            ids = self._ids
            for value in args:
                if id(value) in ids or isinstance(value, _SEQUENCES):
                    break
            else:
                return output
        if func is torch.autograd.grad:
            if (kwargs or {}).get("create_graph", args[4:5] == (True,)):
                self.derivatives[_DOUBLE_BACKWARD] = None
            return output
        if func is torch._VF._make_dual:
            self.derivatives[_FORWARD_MODE] = None
        taken = self._watched_among([*args, *(kwargs or {}).values()])
        if taken and _carries_graph(output):
            self._note_function(func, taken, (), output)
        return output

    def _call_layer(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
    ) -> Any:
        """Run a layer, which is recorded, and note watched parameters that are no part of it."""
        known = len(self.uses)
        output = super().__torch_function__(func, types, args, kwargs)
        taken = self._watched_among([*args, *kwargs.values()])
        if taken and _carries_graph(output):
            self._note_function(func, taken, self.uses[known:], output)
            self._note_weight(args[1] if len(args) > 1 else kwargs["weight"])
        return output

    def _watched_among(self, values: Iterable[Any]) -> list[Tensor]:
        """Find the watched parameters among arguments and in lists of them, wrapped or not."""
        inside = _peek() is not None
        watched: list[Tensor] = []
        for value in values:
            if id(value) in self._ids:
                watched.append(value)
            elif isinstance(value, _SEQUENCES):
                watched += [item for item in value if id(item) in self._ids]
            elif inside and isinstance(value, Tensor) and id(_unwrapped(value)) in self._ids:
                watched.append(value)
        return watched

    def signature(self) -> object:
        """Return a value that is equal for computations with the same uses of the parameters."""
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
        """Describe the weight of the last use by its bias, if it is not one of the optimiser's."""
        use = self.uses[-1] if self.uses else None
        if use is not None and use.bias is not None and use.weight is None:
            computed = isinstance(weight, Tensor) and weight.grad_fn is not None
            text = "computed from other tensors" if computed else "not trained by this optimiser"
            self.of_biases[id(use.bias)] = text


@dataclass
class Explanation:
    """Reasons of one optimiser, kept from one update of the factors to the next.

    Attributes:
        signature: signature of the computation that they were found for; None before the first.
        left: the parameters without factors there.
        reasons: why they have none, by their position among all parameters.
        remarks: remarks on layers with factors.
        warned: whether the user has been warned that no layer was found.
        last: parameters of the last call of :meth:`of`, and its result.
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

        If ``thorough``, ``partial`` of the factors is set.
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

    def as_text(self) -> str:
        """Return reasons and remarks as one text, which :meth:`take_text` reads."""
        return json.dumps([list(self.reasons.items()), self.remarks])

    def take_text(self, text: str) -> None:
        """Take the reasons and remarks of another process."""
        if text != self.as_text():
            reasons, self.remarks = json.loads(text)
            self.reasons, self.last = dict(reasons), ([], {})

    def of(
        self, parameters: Iterable[Tensor], groups: Sequence[Mapping[str, Any]]
    ) -> dict[str, str]:
        """Return the reasons why these parameters are left to Adam, by name."""
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
            "KroneckerHIG found no layer that it can precondition, so that "
            f"its steps are Adam's; {'; '.join(grouped(left))}",
            stacklevel=stacklevel + 1,
        )


def parameter_names(groups: Iterable[Mapping[str, Any]]) -> dict[Tensor, str]:
    """Names of the parameters of groups; position and shape for those without one."""
    names: dict[Tensor, str] = {}
    for group in groups:
        group_names = group.get("param_names", [None] * len(group["params"]))
        for parameter, name in zip(group["params"], group_names, strict=True):
            shape = "uninitialized" if is_lazy(parameter) else tuple(parameter.shape)
            names.setdefault(parameter, name or f"parameter {len(names)} {shape}")
    return names


def _why_left(parameter: Tensor, calls: ParameterCalls, layered: Collection[int]) -> str:
    """Return why a parameter that the prediction depends on has no factors."""
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
        return f"used by {listed(names)}; only matrix products and convolutions have factors"
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
    """Describe how the prediction depends on a parameter apart from calls of layers."""
    ways = [*calls.functions.get(id(parameter), ()), *calls.derivatives]
    return f"through {listed(ways)}" if ways else "in a way that was not seen"


def _tensors(output: Any) -> list[Tensor]:
    """Return the tensors among the results of a function, alone or in a list or tuple."""
    values = output if isinstance(output, list | tuple) else (output,)
    return [value for value in values if isinstance(value, Tensor)]


def _unwrapped(tensor: Tensor) -> Tensor:
    """Return the tensor inside the wrappers of torch.func transforms."""
    while _wrapped(tensor):
        tensor = torch._C._functorch.get_unwrapped(tensor)
    return tensor


def _carries_graph(output: Any) -> bool:
    return any(tensor.requires_grad or _wrapped(tensor) for tensor in _tensors(output))


def _name(func: Any) -> str:
    """Return the name by which users call a function; properties come as getters of descriptors."""
    name = getattr(func, "__name__", type(func).__name__)
    if name == "__get__":
        name = getattr(getattr(func, "__self__", None), "__name__", name)
    return name.strip("_")
