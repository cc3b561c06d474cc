"""Checks of parameter groups and their learning rates."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from hig.arguments import NON_NEGATIVE, check_number, check_same_device
from hig.errors import NonFiniteError

__all__ = [
    "IN_EVERY_DTYPE",
    "LARGE_STEP",
    "check_group",
    "check_group_keys",
    "check_group_lr",
    "check_lr",
    "check_one_lr",
    "check_parameters_finite",
    "has_lr",
]

# Steps up to this size are not checked: they leave float32 only with directions of 1e32, and a
# check costs a transfer.
LARGE_STEP = 1e6

# Learning rates up to this one are numbers of every dtype, and need no look at the parameters.
IN_EVERY_DTYPE = torch.finfo(torch.float16).max

# Keys that torch and its schedulers write into groups.
_KEYS_OF_TORCH = (
    "params", "param_names", "initial_lr", "max_lr", "min_lr", "swa_lr", "base_momentum",
    "max_momentum",
)  # fmt: skip


def check_group_keys(group: object, defaults: Mapping[str, Any]) -> None:
    """Raise for a new parameter group with a setting that would have no effect.

    Args:
        group: the group; torch refuses one that is not a dictionary.
        defaults: the settings that groups have.
    """
    if not isinstance(group, dict):
        return
    known = f"parameter groups take 'params', {', '.join(map(repr, defaults))}"
    if "params" not in group:
        raise ValueError(f"{known}, got one without 'params'; add {{'params': ...}}")
    for key in group:
        if key not in defaults and key not in _KEYS_OF_TORCH:
            raise ValueError(
                f"{known}, got {key!r}; check its spelling, or pass it to the optimizer, for all "
                "groups"
            )


def check_group(group: dict[str, Any]) -> None:
    """Check a new parameter group.

    Args:
        group: the group.

    Raises:
        ValueError: for a learning rate out of range, or parameters on several devices.
    """
    check_same_device({f"parameter {i}": p for i, p in enumerate(group["params"])})
    check_group_lr(group)


def has_lr(params: Iterable[Any]) -> bool:
    """Return whether a parameter group has a learning rate of its own."""
    return any(isinstance(group, dict) and "lr" in group for group in params)


def check_lr(lr: float) -> None:
    """Raise for a learning rate that is not a number, negative or not finite."""
    # Schedulers and captured graphs store it in a tensor.
    number = float(lr) if isinstance(lr, Tensor) and lr.numel() == 1 else lr
    check_number(number, "lr", NON_NEGATIVE, "1.0 is the published one")


def check_one_lr(lrs: Sequence[float]) -> None:
    """Raise unless all are equal: scaled part by part, a direction need not lead downhill."""
    if len(distinct := sorted(set(lrs))) > 1:
        raise ValueError(
            "where steps are measured all parameter groups must have one lr, got "
            f"{', '.join(f'{lr:g}' for lr in distinct)}: a direction that is scaled group by group "
            "need not lead downhill; give them one lr, freeze parameters with "
            "requires_grad_(False), or use step_rule='fixed' (hig.LevenbergMarquardt and "
            "hig.diagnose always measure)"
        )


def check_group_lr(group: dict[str, Any]) -> None:
    """Raise for a learning rate that is not a number, or not one of the parameters' dtype."""
    check_lr(group["lr"])
    if float(group["lr"]) <= IN_EVERY_DTYPE:
        return
    for dtype in {p.dtype for p in group["params"] if p.is_floating_point()}:
        if float(group["lr"]) > (most := torch.finfo(dtype).max):
            raise ValueError(
                f"lr must be at most {most:.3g}, the largest number of {dtype}, got "
                f"{float(group['lr']):g}; 1.0 is the published one"
            )


def check_parameters_finite(parameters: Iterable[Tensor], step_size: float | None) -> None:
    """Raise if a very large step has left non-finite parameters; smaller steps are not checked.

    Raises:
        NonFiniteError: a parameter is NaN or infinite.
    """
    if step_size is None or not step_size > LARGE_STEP:
        return
    if not all(bool(torch.isfinite(parameter).all()) for parameter in parameters):
        raise NonFiniteError(
            f"a step of size {step_size:g} leaves NaN or Inf in the parameters; use a smaller lr"
        )
