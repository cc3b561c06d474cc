"""Validation of user-supplied operators, models and state dicts."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from hig.arguments import check_count
from hig.errors import described

__all__ = ["check_combined", "check_index", "check_model", "check_operator", "check_state"]


def check_operator(operator: object, name: str = "operator") -> None:
    """Raise a TypeError unless something maps gradients (m, P) to a direction (P,)."""
    _refuse_class(operator, name)
    if hasattr(operator, "calculate_step"):
        raise TypeError(
            f"{name} must be one without a memory, which maps the gradients of all losses to a "
            f"direction, got {described(operator)}; take ConFIGOperator(), PCGradOperator() or "
            "IMTLGOperator()"
        )
    if not callable(operator) and not hasattr(operator, "calculate_gradient"):
        raise TypeError(
            f"{name} must map gradients (m, P) to a direction (P,), got {described(operator)}; "
            "take ConFIGOperator() or another one of hig.conflictfree"
        )


def check_index(index: Any, losses: int) -> int:
    """Return the number of a loss as an int; a TypeError or ValueError if it is none."""
    number = check_count(index, "the number of a loss", "losses count from 0", least=None)
    if not 0 <= number < losses:
        raise ValueError(f"losses count from 0 to {losses - 1}, got {number}")
    return number


def check_model(model: object, name: str, method: str, example: str) -> None:
    """Raise a TypeError unless an object has the method that will be called."""
    _refuse_class(model, name)
    if not callable(getattr(model, method, None)):
        raise TypeError(
            f"{name} must have a method {method}, got {described(model)}; take {example}"
        )


def check_combined(direction: object, matrix: Tensor) -> None:
    """Raise a TypeError or ValueError unless an operator has returned a direction (P,)."""
    shape, expected = tuple(matrix.shape), tuple(matrix.shape[1:])
    if not isinstance(direction, Tensor):
        raise TypeError(
            f"the operator must map {shape} to a tensor of shape {expected}, got "
            f"{described(direction)}; return a combination of the rows, such as matrix.sum(0)"
        )
    if direction.shape != expected:
        raise ValueError(
            f"the operator must map {shape} to one of shape {expected}, got "
            f"{tuple(direction.shape)}; return a combination of the rows, such as matrix.sum(0)"
        )


def check_state(state_dict: object, owner: object, *names: str) -> None:
    """Raise a ValueError unless a state has all entries that its owner requires."""
    entries = list(state_dict) if isinstance(state_dict, Mapping) else described(state_dict)
    missing = [name for name in names if name not in entries]
    if missing or not isinstance(state_dict, Mapping):
        raise ValueError(
            f"the state lacks {', '.join(missing or names)}, it has {entries or 'nothing'}; load "
            f"what {type(owner).__name__}.state_dict() gave"
        )


def _refuse_class(value: object, name: str) -> None:
    if isinstance(value, type):
        raise TypeError(
            f"{name} must be an object, got {described(value)}; make one: {value.__name__}(...)"
        )
