"""State dicts of optimisers: their identity, checked before anything is loaded."""

import copy
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from hig._torch.autograd_graph import real_view

__all__ = ["IDENTITY", "copied_state", "identity_of"]

# Key of the identity in a state.
IDENTITY = "optimizer"


def identity_of(optimizer: object, **settings: str) -> dict[str, str]:
    """Return the properties that a state must share with the optimizer that loads it.

    Args:
        optimizer: the optimizer; a class derived by a user counts as its base in this package.
        settings: settings on which the meaning of the state depends.
    """
    public = (
        base for base in type(optimizer).__mro__ if base.__module__.partition(".")[0] == "hig"
    )
    return {"class": next(public).__name__, **settings}


def copied_state(
    state_dict: Any, identity: Mapping[str, str], groups: Sequence[Mapping[str, Any]]
) -> dict[str, Any]:
    """Return a deep copy of a state, after checking it.

    Args:
        state_dict: the state to load.
        identity: identity of the optimizer that loads it, from :func:`identity_of`.
        groups: its parameter groups.

    Raises:
        ValueError: the state is that of another optimizer, or of other parameters.
    """
    described_identity = _describe(identity)
    if not isinstance(state_dict, Mapping) or not {"state", "param_groups"} <= state_dict.keys():
        raise ValueError(
            f"the state must be a dictionary with 'state' and 'param_groups', got "
            f"{type(state_dict).__name__}; load the state_dict() of {described_identity}"
        )
    state = state_dict["state"]
    # States of earlier versions have no such entry; their parts are checked on reading.
    saved_identity = state.get(IDENTITY)
    if saved_identity is not None and dict(saved_identity) != dict(identity):
        raise ValueError(
            f"the state is that of another optimizer, {_describe(saved_identity)}, this one is "
            f"{described_identity}; construct it with the settings of the saved one"
        )
    _check_shapes(state, [p for group in groups for p in group["params"]])
    return copy.deepcopy(dict(state_dict))


def _describe(identity: Mapping[str, str]) -> str:
    settings = [f"{name}={value!r}" for name, value in identity.items() if name != "class"]
    return f"{identity.get('class')}({', '.join(settings)})"


def _check_shapes(state: Mapping[Any, Any], parameters: Sequence[Tensor]) -> None:
    """Raise unless what is stored for each parameter, a direction or a point, has its shape."""
    for index, parameter in enumerate(parameters):
        shapes = (parameter.shape, real_view(parameter).shape)
        for name, value in state.get(index, {}).items():
            if isinstance(value, Tensor) and value.shape not in shapes:
                raise ValueError(
                    f"the state holds a {name.replace('_', ' ')} of shape {tuple(value.shape)} for "
                    f"parameter {index} of shape {tuple(parameter.shape)}: it is that of another "
                    "network"
                )
