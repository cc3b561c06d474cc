"""Memory that one backward pass holds, read off the autograd graph."""

from collections.abc import Sequence
from dataclasses import dataclass
from heapq import heappop, heappush
from itertools import count
from math import prod

from torch import Tensor
from torch.autograd.graph import GradientEdge, get_gradient_edge

from hig._graph import Edge, Node

__all__ = ["Inputs", "PassMemory", "PassSizes", "measure_pass"]

Inputs = Sequence[Tensor] | Sequence[GradientEdge]

# Their backward passes the gradient on as a view that repeats it, without memory of its own.
_REPEATING = ("SumBackward0", "SumBackward1")


@dataclass(frozen=True)
class PassMemory:
    """Bytes of gradients in one backward pass.

    Attributes:
        peak: the largest set of gradients held at one time: those on their way, those that the
            present operation reads and writes, and those asked for.
        largest: the largest single gradient.
    """

    peak: int
    largest: int


class PassSizes:
    """Remembers what passes hold, so that only a graph that is another one is gone through.

    Autograd numbers the nodes of a thread in the order in which they are made. A graph between
    tensors of the same shapes, made as many nodes after the one before it as that one was after
    its own predecessor, is taken to be the same.
    """

    def __init__(self) -> None:
        self._known: dict[object, _Known] = {}

    def of(self, output: Tensor, inputs: Inputs) -> PassMemory:
        """Report what one pass from an output to inputs holds.

        Args:
            output: the tensor to differentiate, with a graph.
            inputs: tensors or graph edges to differentiate with respect to.
        """
        assert output.grad_fn is not None
        number = output.grad_fn._sequence_nr()
        key = (output.shape, output.dtype, output.device, *map(_shape_or_place, inputs))
        known = self._known.get(key)
        if known is None:
            known = self._known[key] = _Known(measure_pass(output, inputs), number)
        elif number != known.number:
            distance = number - known.number
            if distance != known.distance:
                known.size, known.distance = measure_pass(output, inputs), distance
            known.number = number
        return known.size


@dataclass
class _Known:
    """What a pass held, the number of its first node, and its distance to the one before."""

    size: PassMemory
    number: int
    distance: int | None = None


def _shape_or_place(wanted: Tensor | GradientEdge) -> object:
    return wanted.shape if isinstance(wanted, Tensor) else wanted.output_nr


def measure_pass(output: Tensor, inputs: Inputs) -> PassMemory:
    """Measure what one pass holds, by following the graph in the order of autograd.

    Args:
        output: the tensor to differentiate, with a graph.
        inputs: tensors or graph edges to differentiate with respect to.
    """
    edges = [get_gradient_edge(w) if isinstance(w, Tensor) else w for w in inputs]
    wanted = {(edge.node, edge.output_nr) for edge in edges}
    start = (output.grad_fn, output.output_nr)
    following = _following(start[0])
    order = _order(start[0], following)
    reaching = {node for node, _ in wanted}
    for node in reversed(order):
        if any(after in reaching for after, _ in following[node]):
            reaching.add(node)
    return _followed(start, [node for node in order if node in reaching], following, wanted)


def _following(start: Node) -> dict[Node, list[Edge]]:
    """The edges out of every node of the graph."""
    edges: dict[Node, list[Edge]] = {}
    waiting = [start]
    while waiting:
        node = waiting.pop()
        if node not in edges:
            edges[node] = [edge for edge in node.next_functions if edge[0] is not None]
            waiting.extend(after for after, _ in edges[node] if after not in edges)
    return edges


def _order(start: Node, following: dict[Node, list[Edge]]) -> list[Node]:
    """All nodes as autograd runs them: of those whose gradient is complete the latest made."""
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


def _followed(
    start: Edge, order: list[Node], following: dict[Node, list[Edge]], wanted: set[Edge]
) -> PassMemory:
    """Add up gradients along the order of nodes; only these are run."""
    run, sizes = set(order), {node: _sizes(node) for node in order}
    waiting = {start}
    held = peak = largest = sizes[start[0]][start[1]] if start[0] in run else 0
    for node in order:
        written = 0
        for edge in following[node]:
            if edge[0] not in run:
                continue
            size = sizes[edge[0]][edge[1]]
            written += size
            if node.name() not in _REPEATING:
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


def _sizes(node: Node) -> list[int]:
    """Bytes of the gradients that a node takes."""
    return [
        0 if of.is_nested_tensor else prod(of.shape) * of.dtype.itemsize
        for of in node._input_metadata
    ]
