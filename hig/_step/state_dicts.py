"""States of optimisers: whose they are, checked before anything of them is loaded."""

import copy
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

__all__ = ["IDENTITY", "copied_state", "identity_of"]

# Under this name a state says whose it is.
IDENTITY = "optimizer"


def identity_of(optimizer: object, **settings: str) -> dict[str, str]:
    """Properties that a state must share with the optimizer that loads it.

    Args:
        optimizer: the optimizer; a class derived by a user counts as that of this package.
        settings: what else decides on the meaning of the state.
    """
    own = (kind for kind in type(optimizer).__mro__ if kind.__module__.partition(".")[0] == "hig")
    return {"class": next(own).__name__, **settings}


def copied_state(
    state_dict: Any, identity: Mapping[str, str], groups: Sequence[Mapping[str, Any]]
) -> dict[str, Any]:
    """A copy of a state, whose tensors are shared with nobody.

    Args:
        state_dict: what was given.
        identity: that of the optimizer that loads it, from :func:`identity_of`.
        groups: its parameter groups.

    Raises:
        ValueError: the state is that of another optimizer, or of other parameters.
    """
    own = _described(identity)
    if not isinstance(state_dict, Mapping) or not {"state", "param_groups"} <= state_dict.keys():
        raise ValueError(
            f"the state must be a dictionary with 'state' and 'param_groups', got "
            f"{type(state_dict).__name__}; load what state_dict() of {own} gave"
        )
    state = state_dict["state"]
    # States of before have no such entry; what their parts must be is checked where they are read.
    found = state.get(IDENTITY)
    if found is not None and dict(found) != dict(identity):
        raise ValueError(
            f"the state is that of another optimizer, {_described(found)}, this one is {own}; "
            "construct it as the one whose state it was"
        )
    _check_shapes(state, [p for group in groups for p in group["params"]])
    return copy.deepcopy(dict(state_dict))


def _described(identity: Mapping[str, str]) -> str:
    settings = [f"{name}={value!r}" for name, value in identity.items() if name != "class"]
    return f"{identity.get('class')}({', '.join(settings)})"


def _check_shapes(state: Mapping[Any, Any], parameters: Sequence[Tensor]) -> None:
    """Raise unless what is remembered of each parameter as a whole has its shape."""
    for index, parameter in enumerate(parameters):
        direction = state.get(index, {}).get("direction")
        if direction is not None and direction.shape != parameter.shape:
            raise ValueError(
                f"the state holds a direction of shape {tuple(direction.shape)} for parameter "
                f"{index} of shape {tuple(parameter.shape)}: it is that of another network"
            )
