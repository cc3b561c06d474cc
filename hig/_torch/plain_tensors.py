"""Plain tensors in place of what stands for them: subclasses, and objects that hold one.

Libraries give tensors labels or spaces (PINA, torchphysics), as a subclass of ``torch.Tensor`` or
an object with ``__torch_function__``. Their methods are made for functions on points, not for
linear algebra, so that the step works with the tensor itself.
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import GradientEdge, get_gradient_edge
from torch.nn import Parameter

from hig.errors import described

__all__ = ["origin", "plain"]

_ORIGIN = "_hig_origin"


def plain(value: Any, name: str) -> Any:
    """The tensor that a value stands for, with its graph; what stands for none as it is.

    The result may be one operation behind the value: derivatives of something else with respect
    to it are to be taken at its :func:`origin`.

    Args:
        value: a tensor, or anything.
        name: what it is called.

    Raises:
        TypeError: the value stands for a tensor that cannot be found, or that is stored in parts.
    """
    if type(value) is Tensor or type(value) is Parameter:
        return value
    if not isinstance(value, Tensor):
        if not hasattr(type(value), "__torch_function__"):
            return value
        return plain(_held(value, name), name)
    if type(value).__torch_dispatch__ is not Tensor.__torch_dispatch__:
        raise TypeError(
            f"{name} must be one tensor with all its entries, got {type(value).__name__}, which "
            "keeps them in parts of its own; return a plain tensor, such as "
            "to_tensor(0) of a masked or full_tensor() of a distributed one"
        )
    with torch._C.DisableTorchFunctionSubclass():
        found = Tensor.as_subclass(value, Tensor)
        if value.requires_grad:
            setattr(found, _ORIGIN, get_gradient_edge(value))
    return found


def origin(tensor: Tensor) -> Tensor | GradientEdge:
    """Where in the graph of its values a tensor of :func:`plain` stands."""
    found: Tensor | GradientEdge = getattr(tensor, _ORIGIN, tensor)
    return found


def _held(value: object, name: str) -> Tensor:
    """The tensor that an object holds; with several that one which has a graph."""
    names = [key for kind in type(value).__mro__ for key in getattr(kind, "__slots__", ())]
    held = [getattr(value, key, None) for key in names] + list(
        getattr(value, "__dict__", {}).values()
    )
    tensors = [item for item in held if isinstance(item, Tensor)]
    tensors = [item for item in tensors if item.requires_grad] or tensors
    if len(tensors) != 1:
        raise TypeError(
            f"{name} must be a tensor, got {described(value)}, which holds {len(tensors)} of them; "
            "return the one that is meant"
        )
    return tensors[0]
