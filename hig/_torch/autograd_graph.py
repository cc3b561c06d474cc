"""What an autograd graph is made of."""

from typing import Any

import torch
from torch import Tensor

__all__ = ["coarsest_dtype", "leaves", "nodes_behind"]

Node = Any  # torch gives the nodes of its graph no public type
Edge = tuple[Node, int]


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
