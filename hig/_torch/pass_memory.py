"""Memory of one backward pass, read off the autograd graph."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from heapq import heappop, heappush
from itertools import count

from torch import Tensor
from torch.autograd.graph import GradientEdge

from hig._torch.autograd_graph import Edge, Node, bytes_taken

__all__ = ["Inputs", "PassMemory", "measure_pass"]

Inputs = Sequence[Tensor] | Sequence[GradientEdge]

# Gradients that these nodes pass on may be views: of one repeated number, or of their own input.
_SHARING = (
    "AddBackward0", "ExpandBackward0", "PermuteBackward0", "ReshapeAliasBackward0",
    "SqueezeBackward0", "SqueezeBackward1", "SumBackward0", "SumBackward1", "TBackward0",
    "TransposeBackward0", "UnsafeViewBackward0", "UnsqueezeBackward0", "ViewBackward0",
)  # fmt: skip


@dataclass(frozen=True)
class PassMemory:
    """Bytes of gradients in one backward pass.

    Attributes:
        peak: the largest set of gradients held at one time: those not yet consumed, those that the
            present operation reads and writes, and those asked for.
        largest: the largest single gradient that certainly has its own memory (is not a view).
    """

    peak: int
    largest: int


def measure_pass(output: Tensor, inputs: Inputs) -> PassMemory:
    """Return the memory of one pass, by following the graph in the order of autograd.

    Args:
        output: the tensor to differentiate, with a graph.
        inputs: tensors or graph edges to differentiate with respect to.
    """
    start = (output.grad_fn, output.output_nr)
    following = _edges_by_node(start[0])
    wanted = _places(inputs, following)
    order = _order(start[0], following)
    reaching = {node for node, _ in wanted}
    for node in reversed(order):
        if any(after in reaching for after, _ in following[node]):
            reaching.add(node)
    return _follow_pass(start, [node for node in order if node in reaching], following, wanted)


def _places(inputs: Inputs, nodes: Iterable[Node]) -> set[Edge]:
    """Return the edges of the graph that carry the gradients of the inputs."""
    ends = {id(n.variable): n for n in nodes if n.name() == "torch::autograd::AccumulateGrad"}
    places = set()
    for wanted in inputs:
        if not isinstance(wanted, Tensor):
            places.add((wanted.node, wanted.output_nr))
        elif wanted.grad_fn is not None:
            places.add((wanted.grad_fn, wanted.output_nr))
        elif id(wanted) in ends:  # asking torch for its edge would add a node to the count
            places.add((ends[id(wanted)], 0))
    return places


def _edges_by_node(start: Node) -> dict[Node, list[Edge]]:
    """Return the edges out of every node of the graph."""
    edges: dict[Node, list[Edge]] = {}
    waiting = [start]
    while waiting:
        node = waiting.pop()
        if node not in edges:
            edges[node] = [edge for edge in node.next_functions if edge[0] is not None]
            waiting.extend(after for after, _ in edges[node] if after not in edges)
    return edges


def _order(start: Node, following: dict[Node, list[Edge]]) -> list[Node]:
    """Return all nodes in the order of autograd: of the ready ones the most recently made first."""
    missing = dict.fromkeys(following, 0)
    for edges in following.values():
        for after, _ in edges:
            missing[after] += 1
    order: list[Node] = []
    entry = count()  # between equals the entry decides: nodes cannot be compared
    ready = [(0, next(entry), start)]
    while ready:
        node = heappop(ready)[2]
        order.append(node)
        for after, _ in following[node]:
            missing[after] -= 1
            if not missing[after]:
                heappush(ready, (-after._sequence_nr(), next(entry), after))
    return order


def _follow_pass(
    start: Edge, order: list[Node], following: dict[Node, list[Edge]], wanted: set[Edge]
) -> PassMemory:
    """Add up gradients along the order of nodes; only these are run."""
    run, sizes = set(order), {node: bytes_taken(node) for node in order}
    waiting = {start}
    held = peak = largest = sizes[start[0]][start[1]] if start[0] in run else 0
    for node in order:
        written = 0
        for edge in following[node]:
            if edge[0] not in run:
                continue
            size = sizes[edge[0]][edge[1]]
            written += size
            if node.name() not in _SHARING:
                largest = max(largest, size)
        peak = max(peak, held + written)
        for edge in following[node]:
            if edge[0] in run and edge not in waiting:
                waiting.add(edge)
                held += sizes[edge[0]][edge[1]]
        for number, size in enumerate(sizes[node]):
            if (node, number) in waiting and (node, number) not in wanted:
                held -= size
    return PassMemory(peak, largest)
