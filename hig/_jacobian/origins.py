"""Operands of a graph that are a parameter, or its entries in another arrangement.

Between a parameter and the operation that multiplies it stand transposes, views, slices and the
like. Followed from the parameter they say which entry of it each entry of the operand is. Results
that parameters alone determine, such as the weight of a parametrisation, count as parameters too if
they are asked for.
"""

from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from hig._torch.autograd_graph import Edge, Node

__all__ = ["Consumer", "Walk"]

# Arrangements between an operand and its source.
MOST_LINKS = 64

Arranged = Callable[[Any, int, Tensor, torch.Size], Tensor]


@dataclass(frozen=True)
class Source:
    """Tensor that operands are arrangements of.

    Attributes:
        number: index of a parameter, or -1 - number of the node of a derived tensor.
        shape: its shape.
        dtype: its dtype.
    """

    number: int
    shape: torch.Size
    dtype: torch.dtype

    @property
    def is_parameter(self) -> bool:
        """Whether it is a parameter, and not derived from parameters."""
        return self.number >= 0

    @property
    def size(self) -> int:
        """Number of its real entries: two for each complex number."""
        return self.shape.numel() * (2 if self.dtype.is_complex else 1)


@dataclass(frozen=True)
class Consumer:
    """Operation with an operand that is a parameter in some arrangement.

    Attributes:
        node: the node of the operation.
        position: number of the operand.
        source: the parameter, or a tensor that is derived from parameters alone.
        chain: edges from the operand to the source, without that of the source.
    """

    node: Node
    position: int
    source: Source
    chain: tuple[Edge, ...]

    @property
    def signature(self) -> object:
        """What the product depends on, of simple operations; None for those with settings."""
        if self.node.name() not in _WITHOUT_SETTINGS:
            return None
        nodes = [self.node, *(node for node, _ in self.chain)]
        return (
            self.source.number,
            self.position,
            tuple((node.name(), _shape(node), _settings(node)) for node in nodes),
            tuple(number for _, number in self.chain),
        )

    @property
    def scale(self) -> Tensor | float:
        """Factor of the entries in the operand."""
        scale: Tensor | float = 1.0
        for node, _ in self.chain:
            if (factor := _factor(node)) is not None:
                scale = factor * scale
        return scale

    def entries(self) -> Tensor:
        """Return the entry of the flat source at each place of the operand, float64.

        A complex source has two real entries for each number, as :func:`torch.view_as_real`
        arranges them. A place that holds a complex number has them as real and imaginary part.
        """
        source = self.source
        entries = torch.arange(source.size, device="cpu", dtype=torch.float64)
        if source.dtype.is_complex:
            entries = torch.view_as_complex(entries.view(-1, 2))
        entries = entries.view(source.shape)
        for node, number in reversed(self.chain):
            shape = torch.Size(node._input_metadata[number].shape)
            entries = _ARRANGED.get(node.name(), _reshaped)(node, number, entries, shape)
        return entries


class Walk:
    """Walk over a graph that finds where parameters are used.

    Args:
        prediction: with a graph.
        parameters: leaves of it.

    Attributes:
        nodes: all nodes but those of leaves; the same order for graphs of the same structure.
    """

    def __init__(self, prediction: Tensor, parameters: Sequence[Tensor]):
        self._parameters = parameters
        self._indices = {id(parameter): index for index, parameter in enumerate(parameters)}
        root: Node = prediction.grad_fn
        self.nodes: list[Node] = []
        waiting, seen = [root], {root}
        while waiting:
            node = waiting.pop()
            self.nodes.append(node)
            for following, _ in node.next_functions:
                if following is None or following in seen or hasattr(following, "variable"):
                    continue
                seen.add(following)
                waiting.append(following)

    @cached_property
    def structure(self) -> int:
        """A number that graphs of the same operations on the same shapes share."""
        return hash(
            tuple(
                (node.name(), *(tuple(entry.shape) for entry in node._input_metadata))
                for node in self.nodes
            )
        )

    @cached_property
    def numbers(self) -> dict[Node, int]:
        """The number of each node."""
        return {node: number for number, node in enumerate(self.nodes)}

    def consumers(self, derived: Collection[int] = ()) -> Iterator[Consumer]:
        """Yield all operations that a source is an operand of, in a fixed order.

        Args:
            derived: numbers of nodes whose result parameters alone determine: a source of its own.
        """
        origins = self._origins(derived)
        for node in self.nodes:
            if origins.of((node, 0)) is not None:
                continue  # an arrangement itself, or derived
            for position, edge in enumerate(node.next_functions):
                if edge[0] is not None and (found := origins.of(edge)) is not None:
                    yield Consumer(node, position, *found)

    def determined(self, node: Node, derived: Collection[int]) -> bool:
        """Return whether parameters alone determine the one result of a node.

        A product with a constant is not taken for such a result: that may be data. Entry by entry
        it is, in the shape of the parameter.
        """
        if len(node._input_metadata) != 1 or node.name() in _BY_DATA:
            return False
        origins = self._origins(derived)
        edges = [edge for edge in node.next_functions if edge[0] is not None]
        if not edges or any(origins.of(edge) is None for edge in edges):
            return False
        if len(edges) == len(node.next_functions):
            return True
        shapes = {tuple(following._input_metadata[number].shape) for following, number in edges}
        return node.name() in _WITH_CONSTANT and shapes == {tuple(node._input_metadata[0].shape)}

    def parameters_of(self, number: int) -> list[int]:
        """Return the indices of the parameters that a node depends on."""
        waiting, seen, found = [self.nodes[number]], set(), set()
        while waiting:
            for following, _ in waiting.pop().next_functions:
                if following is None or following in seen:
                    continue
                seen.add(following)
                variable = getattr(following, "variable", None)
                if variable is None:
                    waiting.append(following)
                elif id(variable) in self._indices:
                    found.add(self._indices[id(variable)])
        return sorted(found)

    def _origins(self, derived: Collection[int]) -> "_Origins":
        return _Origins(self._indices, self._parameters, {self.nodes[i]: i for i in derived})


class _Origins:
    """Sources that edges of a graph are arrangements of."""

    def __init__(
        self, indices: dict[int, int], parameters: Sequence[Tensor], derived: dict[Node, int]
    ):
        self._indices, self._parameters, self._derived = indices, parameters, derived
        self._known: dict[Edge, tuple[Source, tuple[Edge, ...]] | None] = {}

    def of(self, edge: Edge) -> tuple[Source, tuple[Edge, ...]] | None:
        """Return the source of an edge, if it has one, and the arrangements up to it."""
        above: list[Edge] = []
        while edge not in self._known:
            following = self._look(edge)
            if following is None:
                break
            above.append(edge)
            edge = following
        found = self._known[edge]
        for link in reversed(above):
            if found is not None:
                chain = (link, *found[1])
                found = (found[0], chain) if len(chain) <= MOST_LINKS else None
            self._known[link] = found
        return found

    def _look(self, edge: Edge) -> Edge | None:
        """Return the edge that one arranges in another way; of others, remember what they are."""
        node, _ = edge
        variable = getattr(node, "variable", None)
        if variable is not None:
            index = self._indices.get(id(variable))
            self._known[edge] = (
                None if index is None else (Source(index, variable.shape, variable.dtype), ())
            )
            return None
        if node in self._derived:
            result = node._input_metadata[0]
            shape = torch.Size(result.shape)
            self._known[edge] = Source(-1 - self._derived[node], shape, result.dtype), ()
            return None
        following = _behind(node)
        if following is None:
            self._known[edge] = None
        return following


def _behind(node: Node) -> Edge | None:
    """Return the edge whose entries a node arranges in another way, or only scales and shifts."""
    name = node.name()
    if name in _CHAINED:
        return node.next_functions[0] if _is_plain_copy(node) else None
    if name not in _WITH_CONSTANT:
        return None
    edges = [edge for edge in node.next_functions if edge[0] is not None]
    if len(edges) != 1 or (node.next_functions[0][0] is None and name == "DivBackward0"):
        return None
    following, number = edges[0]
    own, other = node._input_metadata[0], following._input_metadata[number]
    same = own.shape == other.shape and own.dtype.is_complex == other.dtype.is_complex
    if not same or _is_complex(getattr(node, "_saved_alpha", 1)):
        return None
    constant = _factor(node)
    # A complex factor does not commute with real and imaginary parts.
    plain = isinstance(constant, float) or (constant.ndim == 0 and not constant.is_complex())
    return edges[0] if plain else None


def _is_plain_copy(node: Node) -> bool:
    """Return whether a node has one operand, and makes no complex numbers of real ones."""
    if len(node.next_functions) != 1:
        return False
    if any(_is_complex(getattr(node, name, 1)) for name in ("_saved_other", "_saved_alpha")):
        return False
    if node.name() != "ToCopyBackward0":
        return True
    following, number = node.next_functions[0]
    own, other = node._input_metadata[0].dtype, following._input_metadata[number].dtype
    return bool(own.is_complex == other.is_complex)


def _is_complex(value: object) -> bool:
    return isinstance(value, complex) or (isinstance(value, Tensor) and value.is_complex())


def _factor(node: Node) -> Any:
    """Return the factor of a node that scales its operand; None for one that does not."""
    scale = _SCALES.get(node.name())
    return None if scale is None else scale(node)


def _shape(node: Node) -> tuple[int, ...]:
    return tuple(node._input_metadata[0].shape)


def _settings(node: Node) -> tuple[object, ...]:
    return tuple(repr(getattr(node, name, None)) for name in _SETTINGS)


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
    "MulBackward0": lambda node: (
        node._saved_other if node.next_functions[0][0] else node._saved_self
    ),
    "MulBackward1": lambda node: float(node._saved_other),
    "DivBackward0": lambda node: 1 / node._saved_other,
    "DivBackward1": lambda node: 1 / float(node._saved_other),
    "NegBackward0": lambda node: -1.0,
    "AddBackward0": lambda node: float(node._saved_alpha) if node.next_functions[1][0] else 1.0,
    "SubBackward0": lambda node: -float(node._saved_alpha) if node.next_functions[1][0] else 1.0,
    "RsubBackward1": lambda node: -float(node._saved_alpha),
}
_SETTINGS = tuple(
    f"_saved_{name}"
    for name in (
        "alpha", "beta", "dim", "dim0", "dim1", "dims", "end", "index", "indices", "repeats",
        "split_size", "split_sizes", "start", "step",
    )
)  # fmt: skip
_WITHOUT_SETTINGS = {
    "AddBackward0", "AddmmBackward0", "BaddbmmBackward0", "BmmBackward0", "DivBackward0",
    "DotBackward0", "MmBackward0", "MulBackward0", "MvBackward0", "SubBackward0",
}  # fmt: skip
# Select rows of their operand by numbers that may be data.
_BY_DATA = {
    "EmbeddingBackward0", "EmbeddingBagBackward0", "GatherBackward0", "IndexBackward0",
    "IndexSelectBackward0", "TakeBackward0",
}  # fmt: skip
_WITH_CONSTANT = {"MulBackward0", "DivBackward0", "AddBackward0", "SubBackward0"}
# Others than those above keep all entries in their order.
_CHAINED = {
    "AddBackward1", "AliasBackward0", "CloneBackward0", "DivBackward1", "MulBackward1",
    "NegBackward0", "ReshapeAliasBackward0", "RsubBackward1", "SqueezeBackward0",
    "SqueezeBackward1", "SqueezeBackward2", "SubBackward1", "ToCopyBackward0",
    "UnsafeViewBackward0", "UnsqueezeBackward0", "ViewBackward0", *_ARRANGED,
}  # fmt: skip
