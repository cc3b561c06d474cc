"""Operands of a graph that are a parameter, or its entries in another arrangement.

Between a parameter and the operation that multiplies it stand transposes, views, slices and the
like. Followed from the parameter they say which entry of it each entry of the operand is.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from hig._torch.autograd_graph import Edge, Node

__all__ = ["Consumer", "find_consumers"]

Arranged = Callable[[Any, int, Tensor, torch.Size], Tensor]


@dataclass(frozen=True)
class Consumer:
    """Operation with an operand that is a parameter in some arrangement.

    Attributes:
        node: the node of the operation.
        position: number of the operand.
        parameter: index of the parameter.
        chain: edges from the operand to the parameter, that of the parameter last.
    """

    node: Node
    position: int
    parameter: int
    chain: tuple[Edge, ...]

    @property
    def structure(self) -> tuple[object, ...]:
        """What distinguishes consumers of graphs that differ."""
        output = self.node._input_metadata[0]
        names = tuple(node.name() for node, _ in self.chain)
        shape, dtype = tuple(output.shape), output.dtype
        return self.parameter, self.node.name(), self.position, shape, dtype, names

    @property
    def scale(self) -> Tensor | float:
        """Factor of the entries in the operand."""
        scale: Tensor | float = 1.0
        for node, _ in self.chain[:-1]:
            if (factor := _factor(node)) is not None:
                scale = factor * scale
        return scale

    def entries(self) -> Tensor:
        """Return the entry of the flat parameter at each place of the operand, float64.

        A complex parameter has two real entries for each number, as :func:`torch.view_as_real`
        arranges them. A place that holds a complex number has them as real and imaginary part.
        """
        leaf, _ = self.chain[-1]
        parameter = leaf.variable
        size = parameter.numel() * (2 if parameter.is_complex() else 1)
        entries = torch.arange(size, device="cpu", dtype=torch.float64)
        if parameter.is_complex():
            entries = torch.view_as_complex(entries.view(-1, 2))
        entries = entries.view(parameter.shape)
        for node, number in reversed(self.chain[:-1]):
            shape = torch.Size(node._input_metadata[number].shape)
            entries = _ARRANGED.get(node.name(), _reshaped)(node, number, entries, shape)
        return entries


def find_consumers(prediction: Tensor, parameters: Sequence[Tensor]) -> Iterator[Consumer]:
    """Yield all operations of a graph that a parameter is an operand of, in a fixed order.

    Args:
        prediction: with a graph.
        parameters: leaves of it.
    """
    indices = {id(parameter): index for index, parameter in enumerate(parameters)}
    chains: dict[Edge, tuple[int, tuple[Edge, ...]] | None] = {}

    def origin(edge: Edge) -> tuple[int, tuple[Edge, ...]] | None:
        if edge not in chains:
            chains[edge] = _origin(edge, indices, origin)
        return chains[edge]

    root = prediction.grad_fn
    waiting, seen = [root], {root}
    while waiting:
        node = waiting.pop()
        for position, edge in enumerate(node.next_functions):
            following = edge[0]
            if following is None:
                continue
            found = origin(edge)
            if found is not None:
                yield Consumer(node, position, *found)
            elif following not in seen:
                seen.add(following)
                waiting.append(following)


def _origin(
    edge: Edge, indices: dict[int, int], origin: Callable[[Edge], Any]
) -> tuple[int, tuple[Edge, ...]] | None:
    node, _ = edge
    variable = getattr(node, "variable", None)
    if variable is not None:
        index = indices.get(id(variable))
        return None if index is None else (index, (edge,))
    following = _behind(node)
    found = None if following is None else origin(following)
    return None if found is None else (found[0], (edge, *found[1]))


def _behind(node: Node) -> Edge | None:
    """Return the edge whose entries a node arranges in another way, or only scales and shifts."""
    name = node.name()
    if name in _CHAINED:
        return node.next_functions[0] if _is_plain_copy(node) else None
    if name not in _WITH_CONSTANT:
        return None
    edges = [edge for edge in node.next_functions if edge[0] is not None]
    if len(edges) != 1 or node.next_functions[0][0] is None and name == "DivBackward0":
        return None
    following, number = edges[0]
    same = node._input_metadata[0].shape == following._input_metadata[number].shape
    constant = _factor(node)
    return edges[0] if same and (isinstance(constant, float) or constant.ndim == 0) else None


def _is_plain_copy(node: Node) -> bool:
    """Return whether a node has one operand, and makes no complex numbers of real ones."""
    if len(node.next_functions) != 1:
        return False
    if node.name() != "ToCopyBackward0":
        return True
    following, number = node.next_functions[0]
    own, other = node._input_metadata[0].dtype, following._input_metadata[number].dtype
    return bool(own.is_complex == other.is_complex)


def _factor(node: Node) -> Any:
    """Return the factor of a node that scales its operand; None for one that does not."""
    scale = _SCALES.get(node.name())
    return None if scale is None else scale(node)


def _reshaped(node: Node, number: int, entries: Tensor, shape: torch.Size) -> Tensor:
    return entries.reshape(shape)


def _expanded(node: Node, number: int, entries: Tensor, shape: torch.Size) -> Tensor:
    return entries.expand(shape)


def _transposed(node: Node, number: int, entries: Tensor, shape: torch.Size) -> Tensor:
    return entries.transpose(_signed(node._saved_dim0), _signed(node._saved_dim1))


def _permuted(node: Node, number: int, entries: Tensor, shape: torch.Size) -> Tensor:
    return entries.permute(tuple(_signed(dim) for dim in node._saved_dims))


def _repeated(node: Node, number: int, entries: Tensor, shape: torch.Size) -> Tensor:
    return entries.repeat(tuple(node._saved_repeats))


def _selected(node: Node, number: int, entries: Tensor, shape: torch.Size) -> Tensor:
    return entries.select(_signed(node._saved_dim), _signed(node._saved_index))


def _sliced(node: Node, number: int, entries: Tensor, shape: torch.Size) -> Tensor:
    dim, start = _signed(node._saved_dim), _signed(node._saved_start)
    end, step = min(_signed(node._saved_end), entries.shape[dim]), _signed(node._saved_step)
    places = range(entries.shape[dim])[start:end:step]
    return entries.index_select(dim, torch.tensor(places, device="cpu"))


def _piece(node: Node, number: int, entries: Tensor, shape: torch.Size) -> Tensor:
    return entries.split(_signed(node._saved_split_size), _signed(node._saved_dim))[number]


def _unbound(node: Node, number: int, entries: Tensor, shape: torch.Size) -> Tensor:
    return entries.unbind(_signed(node._saved_dim))[number]


def _indexed(node: Node, number: int, entries: Tensor, shape: torch.Size) -> Tensor:
    indices = node._saved_indices
    places = tuple(slice(None) if index is None else index.cpu() for index in indices)
    return entries[places]


def _signed(value: int) -> int:
    """Return an integer that torch shows without its sign."""
    return int(value) - 2**64 if value >= 2**63 else int(value)


_ARRANGED: dict[str, Arranged] = {
    "TBackward0": lambda node, number, entries, shape: entries.t(),
    "NumpyTBackward0": lambda node, number, entries, shape: entries.permute(
        tuple(reversed(range(entries.ndim)))
    ),
    "TransposeBackward0": _transposed,
    "PermuteBackward0": _permuted,
    "ExpandBackward0": _expanded,
    "RepeatBackward0": _repeated,
    "SelectBackward0": _selected,
    "SliceBackward0": _sliced,
    "RealBackward0": lambda node, number, entries, shape: entries.real,
    "ImagBackward0": lambda node, number, entries, shape: entries.imag,
    "ViewAsComplexBackward0": lambda node, number, entries, shape: torch.view_as_complex(
        entries.contiguous()
    ),
    "ViewAsRealBackward0": lambda node, number, entries, shape: torch.view_as_real(entries),
    "FlipBackward0": lambda node, number, entries, shape: entries.flip(
        tuple(_signed(dim) for dim in node._saved_dims)
    ),
    "IndexBackward0": _indexed,
    "SplitBackward0": _piece,
    "SplitWithSizesBackward0": lambda node, number, entries, shape: entries.split(
        tuple(node._saved_split_sizes), _signed(node._saved_dim)
    )[number],
    "UnsafeSplitBackward0": _piece,
    "UnbindBackward0": _unbound,
}
_SCALES: dict[str, Callable[[Node], Any]] = {
    "MulBackward0": lambda node: node._saved_other if node.next_functions[0][0] else node._saved_self,
    "MulBackward1": lambda node: float(node._saved_other),
    "DivBackward0": lambda node: 1 / node._saved_other,
    "DivBackward1": lambda node: 1 / float(node._saved_other),
    "NegBackward0": lambda node: -1.0,
    "AddBackward0": lambda node: float(node._saved_alpha) if node.next_functions[1][0] else 1.0,
    "SubBackward0": lambda node: -float(node._saved_alpha) if node.next_functions[1][0] else 1.0,
}
_WITH_CONSTANT = {"MulBackward0", "DivBackward0", "AddBackward0", "SubBackward0"}
# Others than those above keep all entries in their order.
_CHAINED = {
    "AddBackward1", "AliasBackward0", "CloneBackward0", "DivBackward1", "MulBackward1",
    "NegBackward0", "ReshapeAliasBackward0", "SqueezeBackward0", "SqueezeBackward1",
    "SqueezeBackward2", "SubBackward1", "ToCopyBackward0", "UnsafeViewBackward0",
    "UnsqueezeBackward0", "ViewBackward0", *_ARRANGED,
}  # fmt: skip
