"""Validation of arguments: numbers, choices, functions, tensors and paths.

A value of another type raises a `TypeError`, one out of its range a `ValueError`; the message
states the argument, the value found, and the remedy.
"""

import math
import operator as operators
import os
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from numbers import Real
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from hig.errors import described

__all__ = [
    "ENGINES",
    "FRACTION",
    "GRAFTS",
    "KAPPA",
    "METHODS",
    "MOMENTUM_KINDS",
    "NON_NEGATIVE",
    "POSITIVE",
    "REDUCTIONS",
    "STEP_RULES",
    "Range",
    "check_choice",
    "check_count",
    "check_dense",
    "check_function",
    "check_number",
    "check_parameters",
    "check_path",
    "check_same_device",
    "check_tensor",
]

#: Names of the engines that obtain the joint Jacobian, for the argument ``engine``.
ENGINES = ("auto", "layerwise", "rows")
#: Names of the decompositions, for the argument ``method``.
METHODS = ("auto", "gram", "svd", "lanczos")
#: Names of the step rules, for the argument ``step_rule``.
STEP_RULES = ("fixed", "trust", "line_search")
#: Kinds of momentum, for the argument ``momentum_kind``.
MOMENTUM_KINDS = ("plain", "projected")
#: Sources of the length of a Kronecker step, for the argument ``graft``; None is a further one.
GRAFTS = ("eigenbasis", "layer", "global")
#: Reductions of the loss over the samples of a batch, for the argument ``reduction``.
REDUCTIONS = ("mean", "sum")


@dataclass(frozen=True)
class Range:
    """Range of a number.

    Attributes:
        text: the range in words, such as "positive and finite".
        holds: whether a number lies in it; false for NaN.
    """

    text: str
    holds: Callable[[Any], bool]


def _is_finite(number: Any) -> bool:
    # An int of Python may exceed the largest float.
    return number < math.inf and not (isinstance(number, int) and number > sys.float_info.max)


POSITIVE = Range("positive and finite", lambda x: x > 0 and _is_finite(x))
NON_NEGATIVE = Range("non-negative and finite", lambda x: x >= 0 and _is_finite(x))
FRACTION = Range("in [0, 1)", lambda x: 0 <= x < 1)
KAPPA = Range("in [-1, 1]", lambda x: -1 <= x <= 1)


def check_number(value: object, name: str, within: Range, remedy: str) -> None:
    """Raise unless a value is a real number of Python or numpy in a range.

    Args:
        value: the value; True and False are not numbers.
        name: name of the argument.
        within: its range.
        remedy: advice for the error message.
    """
    if isinstance(value, bool) or not isinstance(value, Real):
        raise TypeError(f"{name} must be a number, {within.text}, got {described(value)}; {remedy}")
    if not within.holds(value):
        shown = described(value) if isinstance(value, int) else value
        raise ValueError(f"{name} must be {within.text}, got {shown}; {remedy}")


def check_count(count: Any, name: str, remedy: str = "", least: int | None = 1) -> int:
    """Return a whole number as an int, after checking it.

    Args:
        count: the number; True and False are not numbers.
        name: name of the argument.
        remedy: advice for the error message, if any.
        least: the smallest number allowed, if any.
    """
    ending = remedy and f"; {remedy}"
    candidate: Any = None if isinstance(count, bool) else count
    try:
        number = operators.index(candidate)
    except TypeError:
        raise TypeError(f"{name} must be a whole number, got {described(count)}{ending}") from None
    if least is not None and number < least:
        raise ValueError(f"{name} must be at least {least}, got {described(number)}{ending}")
    return number


def check_choice(value: object, name: str, allowed: Sequence[object], others: str = "") -> None:
    """Raise a `ValueError` unless a value is one of a few strings (or None, if that is allowed).

    Args:
        value: the value.
        name: name of the argument.
        allowed: the allowed values.
        others: further accepted values, for the error message.
    """
    if not isinstance(value, str | None) or value not in allowed:
        raise ValueError(f"{name} must be one of {allowed}{others}, got {described(value)}")


def check_function(value: object, name: str, form: str) -> None:
    """Raise unless a value is callable.

    Args:
        value: the value.
        name: name of the argument.
        form: arguments and return value of the function, in words.
    """
    if not callable(value):
        raise TypeError(f"{name} must be a function {form}, got {described(value)}; define one")


def check_parameters(params: object, name: str) -> list[Any]:
    """Return parameters, or groups of them, as a list.

    Args:
        params: the value.
        name: name of the argument.
    """
    single = isinstance(params, Tensor | str | bytes | Mapping | torch.nn.Module)
    if single or not isinstance(params, Iterable):
        raise TypeError(
            f"{name} must be an iterable of parameters, got {described(params)}; pass "
            "network.parameters()"
        )
    if not (parameters := list(params)):
        raise ValueError(
            f"{name} must hold a parameter, got none; generators are exhausted after one pass: "
            "call network.parameters() again"
        )
    for item in parameters:
        if not isinstance(item, Tensor | Mapping | tuple):  # a tuple is a name and a parameter
            raise TypeError(
                f"{name} must hold parameters or groups of them, got {described(item)}; pass "
                "network.parameters()"
            )
    return parameters


def check_tensor(value: object, name: str, ndim: int | None = None) -> None:
    """Raise unless a value is a real floating-point tensor whose entries are all in memory.

    Args:
        value: the value.
        name: name of the argument.
        ndim: required number of axes, if any.
    """
    if not isinstance(value, Tensor):
        raise TypeError(
            f"{name} must be a tensor, got {described(value)}; wrap it: torch.as_tensor"
        )
    if not value.is_floating_point():
        raise TypeError(
            f"{name} must be real floating point, got {value.dtype}; convert it with .float(), "
            "complex numbers with torch.view_as_real"
        )
    check_dense(value, name)
    if ndim is not None and value.ndim != ndim:
        raise ValueError(
            f"{name} must have {ndim} axes, got shape {tuple(value.shape)}; reshape it"
        )


def check_dense(tensor: Tensor, name: str) -> None:
    """Raise unless all entries of a tensor are in memory.

    Args:
        tensor: the tensor.
        name: name of the argument.
    """
    if tensor.is_meta or tensor.layout != torch.strided:
        shown = "one on the device meta" if tensor.is_meta else f"one of {tensor.layout}"
        raise TypeError(
            f"{name} must be a tensor with all entries in memory, got {shown}; make it one with "
            ".to_dense(), or compute it on a device"
        )


def check_same_device(named: Mapping[str, Tensor]) -> None:
    """Raise unless all tensors are on one device.

    Args:
        named: tensors by the names of the arguments.
    """
    firsts: dict[torch.device, str] = {}
    for name, tensor in named.items():
        firsts.setdefault(tensor.device, name)
    if len(firsts) > 1:
        places = " and ".join(f"{name} on {device}" for device, name in firsts.items())
        raise ValueError(f"all tensors must be on one device, got {places}; move them with .to()")


def check_path(path: object, name: str = "path") -> Path:
    """Return a path, given as a string or an ``os.PathLike``.

    Args:
        path: the value.
        name: name of the argument.
    """
    if not isinstance(path, str | os.PathLike):
        raise TypeError(
            f"{name} must be a str or a path, got {described(path)}; such as 'results/run.pickle'"
        )
    return Path(path)
