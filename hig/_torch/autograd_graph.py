"""Walks over the autograd graph of a tensor, and plain tensors in place of tensor-like objects.

Libraries give tensors labels or spaces (PINA, torchphysics), as a subclass of ``torch.Tensor`` or
an object with ``__torch_function__``. Their methods are made for functions on points, not for
linear algebra, so that the step works with the plain tensor itself. Complex tensors are the real
numbers that they consist of: torch's gradient of a real loss by a complex entry holds the
derivatives by its real and its imaginary part.
"""

from functools import cached_property
from math import prod
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import GradientEdge, get_gradient_edge
from torch.nn import Parameter

from hig.errors import described

__all__ = [
    "Graph", "bytes_taken", "coarsest_dtype", "from_real", "leaves", "origin", "plain",
    "reachable_nodes", "real_size", "real_view",
]  # fmt: skip

Node = Any  # torch gives the nodes of its graph no public type
Edge = tuple[Node, int]

_ORIGIN = "_hig_origin"


def reachable_nodes(tensor: Tensor, *stops: Edge) -> set[Node]:
    """Return all nodes of the graph of a tensor, those of its leaves included.

    Args:
        tensor: any tensor; empty for one without a graph.
        stops: nodes and output numbers at which the walk stops.
    """
    first = (tensor.grad_fn, tensor.output_nr)
    waiting = [] if first[0] is None or first in stops else [first[0]]
    seen = set(waiting)
    while waiting:
        for edge in waiting.pop().next_functions:
            following = edge[0]
            if following is None or following in seen or edge in stops:
                continue
            seen.add(following)
            waiting.append(following)
    return seen


def coarsest_dtype(nodes: set[Node], dtype: torch.dtype) -> torch.dtype:
    """Return the coarsest floating-point type among a type and those of a graph.

    A float64 network before a float32 simulator, or a network under autocast, has derivatives with
    the rounding of the coarser type, whatever the dtype of the result.

    Args:
        nodes: nodes of the graph.
        dtype: the dtype of the result.
    """
    dtypes = {dtype} | {entry.dtype for node in nodes for entry in node._input_metadata}
    inexact = [t.to_real() for t in dtypes if t.is_floating_point or t.is_complex]
    return max(inexact, key=lambda dtype: torch.finfo(dtype).eps)


def leaves(nodes: set[Node]) -> list[Tensor]:
    """Return the leaf tensors of a graph."""
    return [node.variable for node in nodes if hasattr(node, "variable")]


class Graph:
    """Graph of a tensor, walked only on first use.

    Args:
        tensor: with a graph.
    """

    def __init__(self, tensor: Tensor):
        self._tensor = tensor

    @cached_property
    def nodes(self) -> set[Any]:
        """Nodes of the graph."""
        return reachable_nodes(self._tensor)

    @cached_property
    def operations(self) -> frozenset[str]:
        """Names of the operations; batch normalisation in training mode has a separate name."""
        training = [node for node in self.nodes if getattr(node, "_saved_training", False)]
        return frozenset(node.name() for node in self.nodes) | {"training" for _ in training}

    def reaches(self, parameter: Tensor) -> bool:
        """Return whether the tensor depends on a parameter."""
        return id(parameter) in self._leaves or parameter.grad_fn in self.nodes

    @cached_property
    def _leaves(self) -> set[int]:
        return {id(leaf) for leaf in leaves(self.nodes)}


def bytes_taken(node: Node) -> list[int]:
    """Return the bytes of each gradient that a node takes."""
    return [
        0 if of.is_nested_tensor else prod(of.shape) * of.dtype.itemsize
        for of in node._input_metadata
    ]


def plain(value: Any, name: str) -> Any:
    """Return the plain tensor of a tensor-like value, with its graph; other values unchanged.

    The result may be one operation behind the value: differentiate with respect to its
    :func:`origin`.

    Args:
        value: a tensor, or anything.
        name: its name in messages.

    Raises:
        TypeError: the value holds no tensor or several, or one that is stored in parts.
    """
    if type(value) is Tensor or type(value) is Parameter:
        return value
    if not isinstance(value, Tensor):
        if not hasattr(type(value), "__torch_function__"):
            return value
        return plain(_find_tensor(value, name), name)
    if type(value).__torch_dispatch__ is not Tensor.__torch_dispatch__:
        raise TypeError(
            f"{name} must be one tensor with all its entries, got {type(value).__name__}, which "
            "keeps them in parts of its own; return a plain tensor, such as "
            "to_tensor(0) of a masked or full_tensor() of a distributed one"
        )
    with torch._C.DisableTorchFunctionSubclass():
        tensor = Tensor.as_subclass(value, Tensor)
        if value.requires_grad:
            setattr(tensor, _ORIGIN, get_gradient_edge(value))
    return tensor


def origin(tensor: Tensor) -> Tensor | GradientEdge:
    """Return the input for ``torch.autograd.grad`` that stands for a tensor of :func:`plain`."""
    edge: Tensor | GradientEdge = getattr(tensor, _ORIGIN, tensor)
    return edge


def _find_tensor(value: object, name: str) -> Tensor:
    """Return the tensor that an object holds; of several the one that has a graph."""
    names = [key for base in type(value).__mro__ for key in getattr(base, "__slots__", ())]
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


def real_view(tensor: Tensor) -> Tensor:
    """Return a tensor of real numbers, (..., 2) of a complex one; a view, without a graph."""
    tensor = tensor.detach()
    return torch.view_as_real(tensor.resolve_conj()) if tensor.is_complex() else tensor


def real_size(tensor: Tensor) -> int:
    """Return how many real numbers a tensor consists of."""
    return tensor.numel() * (2 if tensor.is_complex() else 1)


def from_real(numbers: Tensor, like: Tensor) -> Tensor:
    """Return real numbers, in any shape, as a tensor of the shape and dtype of another."""
    if not like.is_complex():
        return numbers.to(like.dtype).view(like.shape)
    pairs = numbers.to(like.dtype.to_real()).reshape(*like.shape, 2)
    return torch.complex(*pairs.unbind(-1))  # of any offset in their storage
