"""The autograd graph behind a tensor, and the tensor that an object stands for.

Libraries give tensors labels or spaces (PINA, torchphysics), as a subclass of ``torch.Tensor`` or
an object with ``__torch_function__``. Their methods are made for functions on points, not for
linear algebra, so that the step works with the plain tensor itself.
"""

from math import prod
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import GradientEdge, get_gradient_edge
from torch.nn import Parameter

from hig.errors import described

__all__ = ["bytes_taken", "coarsest_dtype", "leaves", "nodes_behind", "origin", "plain"]

Node = Any  # torch gives the nodes of its graph no public type
Edge = tuple[Node, int]

_ORIGIN = "_hig_origin"


def nodes_behind(tensor: Tensor, stop: Edge | None = None) -> set[Node]:
    """All nodes of the graph that a tensor was computed by, those of its leaves included.

    Args:
        tensor: any tensor; without a graph there are none.
        stop: node and number of an output, on the far side of which nothing is looked at.
    """
    first = (tensor.grad_fn, tensor.output_nr)
    waiting = [] if first[0] is None or first == stop else [first[0]]
    seen = set(waiting)
    while waiting:
        for following, output in waiting.pop().next_functions:
            if following is None or following in seen or (following, output) == stop:
                continue
            seen.add(following)
            waiting.append(following)
    return seen


def coarsest_dtype(nodes: set[Node], dtype: torch.dtype) -> torch.dtype:
    """The coarsest floating-point type among a type and those of a graph.

    A float64 network before a float32 simulator, or a network under autocast, has derivatives with
    the rounding of that type, whatever type they are given in.

    Args:
        nodes: of the graph.
        dtype: that of its end.
    """
    found = {dtype} | {entry.dtype for node in nodes for entry in node._input_metadata}
    inexact = [t.to_real() for t in found if t.is_floating_point or t.is_complex]
    return max(inexact, key=lambda dtype: torch.finfo(dtype).eps)


def leaves(nodes: set[Node]) -> list[Tensor]:
    """The tensors at which a graph ends."""
    return [node.variable for node in nodes if hasattr(node, "variable")]


def bytes_taken(node: Node) -> list[int]:
    """Bytes of the gradients that a node takes."""
    return [
        0 if of.is_nested_tensor else prod(of.shape) * of.dtype.itemsize
        for of in node._input_metadata
    ]


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
