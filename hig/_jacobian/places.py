r"""Samples that the places of products in a graph belong to, found by two backward passes.

A cotangent c of the prediction gives gradients :math:`\delta` at the places of a product, and
:math:`t \circ c`, with a tag t for each sample, gives :math:`\delta'`. At a place that one sample
alone reaches, :math:`\delta' = t_i \delta`: the ratio is the tag of its sample. Any axis may hold
the samples, in any order, and samples may have places in different numbers.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from hig._torch.autograd_graph import Edge, Node

__all__ = ["Places", "Plan", "find_plan"]

Arrange = Callable[[Tensor], Tensor]

# Distance to a tag, over that of two tags, up to which a ratio is the tag, whatever the rounding.
NEAR = 0.2
# Places of all samples over those of a product, up to which samples may differ in their number.
MOST_PADDED = 16
# Parts of a prediction that are tagged one by one.
MOST_PARTS = 64


@dataclass(frozen=True)
class Places:
    """Places of a product, by the sample that they belong to.

    Attributes:
        index: (samples, k) int64, the places of each sample; None if they follow one another.
        present: (samples, k) bool, whether there is such a place; None if there are k for each.
        samples: number of samples.
    """

    index: Tensor | None
    present: Tensor | None
    samples: int

    def take(self, tensor: Tensor, axis: int) -> Tensor:
        """Return a tensor with the axes (samples, k) in place of that of all places.

        What is absent is zero.
        """
        if self.index is None:
            return tensor.unflatten(axis, (self.samples, -1))
        taken = tensor.index_select(axis, self.index.flatten()).unflatten(axis, self.index.shape)
        if self.present is None:
            return taken
        return taken * self.present.view(*self.present.shape, *(1,) * (taken.ndim - axis - 2))


@dataclass(frozen=True)
class Plan:
    """Backward passes that tell the rows of all samples apart.

    Attributes:
        passes: cotangents (passes, *prediction.shape); None for one for each output of a sample.
        places: those of each product, None where samples influence one another. With ``passes``
            a sample is an entry of the prediction, and places are counted pass by pass.
        by_outputs: whether they are places of each output, which all samples share: then it takes
            a pass for each sample.
    """

    passes: Tensor | None
    places: list[Places | None]
    by_outputs: list[bool]


def find_plan(prediction: Tensor, edges: Sequence[Edge], arranged: Sequence[Arrange]) -> Plan:
    """Find the samples that all places of some products belong to.

    Args:
        prediction: (B, ...), with a graph.
        edges: edges of the outputs of the products.
        arranged: takes gradients (k, *output shape) of a product to (k, G, m, out).
    """
    samples = len(prediction)
    if samples == 1 or not edges:
        return Plan(None, [Places(None, None, 1)] * len(edges), [False] * len(edges))
    tagged = _Tagged(prediction, edges, arranged)
    rows = torch.arange(prediction.numel(), device="cpu").view(samples, -1)
    owners = tagged.owners(rows)
    several = rows.shape[1] > 1
    others = tagged.owners(rows.T) if several and any(owner is None for owner in owners) else owners
    left = [owner is None and other is None for owner, other in zip(owners, others, strict=True)]
    if any(left):
        plan = _plan_by_parts(prediction, edges, arranged)
        if sum(places is None for places in plan.places) < sum(left):
            return plan
    places, by_outputs = [], []
    for owner, other in zip(owners, others, strict=True):
        by_outputs.append(owner is None and other is not None)
        found, count = (other, rows.shape[1]) if by_outputs[-1] else (owner, samples)
        places.append(None if found is None else _places(found, count, prediction.device))
    return Plan(None, places, by_outputs)


def _plan_by_parts(prediction: Tensor, edges: Sequence[Edge], arranged: Sequence[Arrange]) -> Plan:
    """Plan passes for rows of which several belong to one point: they take different passes."""
    parts = _parts(prediction)
    nothing = Plan(None, [None] * len(edges), [False] * len(edges))
    if not 1 < len(parts) <= MOST_PARTS:
        return nothing
    tagged = _Tagged(prediction, edges, arranged)
    owners = [tagged.owners(part.view(-1, 1), complete=False) for part in parts]
    coupled = [any(of_part[i] is None for of_part in owners) for i in range(len(edges))]
    # Parts that reach no place in common share a pass.
    passes: list[list[int]] = []
    taken: list[list[Tensor]] = []
    for number, of_part in enumerate(owners):
        reached = [
            torch.zeros(0, dtype=torch.bool, device="cpu")
            if several or owner is None
            else owner >= 0
            for owner, several in zip(of_part, coupled, strict=True)
        ]
        for members, places in zip(passes, taken, strict=True):
            if not any((a & b).any() for a, b in zip(places, reached, strict=True)):
                members.append(number)
                places[:] = [a | b for a, b in zip(places, reached, strict=True)]
                break
        else:
            passes.append([number])
            taken.append(reached)
    cotangents = prediction.new_zeros((len(passes), prediction.numel()))
    found: list[Places | None] = []
    for row, members in zip(cotangents, passes, strict=True):
        row[torch.cat([parts[number] for number in members]).to(row.device)] = 1
    for index in range(len(edges)):
        if coupled[index]:
            found.append(None)
            continue
        joined = []
        for members in passes:
            of_pass = torch.full_like(_known(owners[members[0]][index]), -1)
            for number in members:
                owner = _known(owners[number][index])
                of_pass = torch.where(owner >= 0, parts[number][owner], of_pass)
            joined.append(of_pass)
        found.append(_places(torch.cat(joined), prediction.numel(), prediction.device))
    return Plan(cotangents.view(-1, *prediction.shape), found, [False] * len(edges))


def _known(owner: Tensor | None) -> Tensor:
    assert owner is not None
    return owner


class _Tagged:
    """Pairs of backward passes, the second one with a tag for each sample.

    Args:
        prediction: (B, ...), with a graph.
        edges: edges of the outputs of products.
        arranged: takes gradients (k, *output shape) of a product to (k, G, m, out).
    """

    def __init__(self, prediction: Tensor, edges: Sequence[Edge], arranged: Sequence[Arrange]):
        self._prediction, self._edges, self._arranged = prediction, edges, arranged
        generator = torch.Generator("cpu").manual_seed(11)
        shape = prediction.numel()
        numbers = torch.rand(shape, generator=generator, dtype=torch.float64, device="cpu")
        signs = torch.randint(0, 2, (shape,), generator=generator, device="cpu") * 2 - 1
        self._numbers = signs * (1 + numbers)

    def owners(self, entries: Tensor, complete: bool = True) -> list[Tensor | None]:
        """Return the number of the sample of each place of all products, (m,) int64 on the CPU.

        Args:
            entries: entries of the flat prediction of each sample, (samples, D).
            complete: whether places that nothing reaches now belong to a sample all the same.

        Returns:
            -1 for a place that no sample reaches; None if a place is reached by several.
        """
        count = len(entries)
        tags = 1 + (torch.arange(count, device="cpu").double() + 0.5) / count
        cotangents = torch.zeros((2, len(self._numbers)), dtype=torch.float64, device="cpu")
        cotangents[0, entries] = self._numbers[entries]
        cotangents[1, entries] = self._numbers[entries] * tags[:, None]
        first, second = (self._gradients(cotangent) for cotangent in cotangents)
        return [
            torch.full((m,), -1, device="cpu")
            if a is None or b is None
            else _owners(a, b, count, torch.finfo(self._prediction.dtype).eps, complete)
            for (a, m), (b, _) in zip(first, second, strict=True)
        ]

    def _gradients(self, cotangent: Tensor) -> list[tuple[Tensor | None, int]]:
        like = self._prediction
        gradients = torch.autograd.grad(
            like,
            [torch.autograd.graph.GradientEdge(*edge) for edge in self._edges],
            cotangent.to(like).view_as(like),
            retain_graph=True,
            allow_unused=True,
        )
        found: list[tuple[Tensor | None, int]] = []
        for gradient, arrange, (node, number) in zip(
            gradients, self._arranged, self._edges, strict=True
        ):
            shape = node._input_metadata[number].shape
            dtype = node._input_metadata[number].dtype
            given = like.new_zeros(shape, dtype=dtype) if gradient is None else gradient
            matrix = arrange(given[None])[0]
            if matrix.is_complex():
                matrix = torch.view_as_real(matrix.resolve_conj()).flatten(-2)
            found.append((None if gradient is None else matrix, matrix.shape[1]))
        return found


def _owners(first: Tensor, second: Tensor, count: int, eps: float, complete: bool) -> Tensor | None:
    """Return the sample of each place, by the ratio of its gradients (G, m, out)."""
    info = torch.finfo(first.dtype)
    # Near the end of the range ratios are those of rounding.
    reached = (first.abs().amax((0, 2)) > 1e3 * info.tiny / info.eps)[:, None]
    first, second = (gradient.double() * reached for gradient in (first, second))
    largest = first.abs().max().clamp_min(torch.finfo(torch.float64).tiny)
    first, second = first / largest, second / largest
    squares = first.square().sum((0, 2))
    ratio = (first * second).sum((0, 2)) / squares
    difference = (second - ratio[:, None] * first).square().sum((0, 2)).sqrt()
    number = (ratio - 1) * count - 0.5
    owner = number.round()
    size = squares.sqrt()
    near = min(NEAR, count * eps**0.5)
    holds = (difference <= eps**0.5 * size) & ((number - owner).abs() < near)
    holds &= (owner >= 0) & (owner < count)
    # What is left of terms that cancel may be anything.
    small = size <= 64 * eps * size.max()
    if not bool((holds | small).all()):
        return None
    owner = torch.where(holds, owner, torch.full_like(owner, -1)).long().cpu()
    return _completed(owner, count) if complete else owner


def _completed(owner: Tensor, count: int) -> Tensor:
    """Give places that nothing reaches now, such as behind a unit at rest, to their sample."""
    known = owner >= 0
    if bool(known.all()) or len(owner) % count:
        return owner
    numbers = torch.arange(len(owner), device="cpu")
    for guess in (numbers // (len(owner) // count), numbers % count):
        if bool((guess == owner)[known].all()):
            return guess
    return owner


def _places(owner: Tensor, samples: int, device: torch.device) -> Places | None:
    """Return the places of each sample; None if the samples differ too much in their number."""
    places = len(owner)
    if places % samples == 0:
        in_order = torch.arange(places, device="cpu") // (places // samples)
        if torch.equal(owner, in_order):
            return Places(None, None, samples)
    order = owner.argsort(stable=True)
    order = order[int((owner < 0).sum()) :]
    counts = torch.bincount(owner[order], minlength=samples)
    most = int(counts.max()) if len(order) else 1
    if most * samples > MOST_PADDED * max(places, samples):
        return None
    starts = counts.cumsum(0) - counts
    numbers = torch.arange(most, device="cpu")
    present = numbers < counts[:, None]
    index = torch.zeros((samples, most), dtype=torch.int64, device="cpu")
    index[present] = order
    del starts
    every = bool(present.all())
    return Places(index.to(device), None if every else present.to(device), samples)


def _parts(prediction: Tensor) -> list[Tensor]:
    """Return the entries of the parts that a prediction was put together from.

    Equations at the same points are parts of their own.
    """
    waiting = [
        (prediction.grad_fn, torch.arange(prediction.numel(), device="cpu").view(prediction.shape))
    ]
    parts: list[Tensor] = []
    while waiting:
        node, entries = waiting.pop(0)
        behind = _behind(node, entries)
        if behind is not None:
            waiting = [*behind, *waiting]
        elif entries.ndim > 1:
            parts += list(entries.flatten(1).unbind(1))
        else:
            parts.append(entries)
    return [part.flatten() for part in parts]


def _behind(node: Node | None, entries: Tensor) -> list[tuple[Node | None, Tensor]] | None:
    """Return the nodes that a node puts together, with the entries of each; None if it ends."""
    if node is None:
        return None
    name = node.name()
    edges = list(node.next_functions)
    shapes = [
        None if following is None else torch.Size(following._input_metadata[number].shape)
        for following, number in edges
    ]
    if name in ("CatBackward0", "StackBackward0"):
        pieces = _pieces(node, entries, shapes)
        if pieces is None:
            return None
        joined = zip(edges, pieces, strict=True)
        return [(edge[0], piece) for edge, piece in joined if edge[0] is not None]
    present = [
        (edge[0], shape) for edge, shape in zip(edges, shapes, strict=True) if shape is not None
    ]
    if name in _ENTRYWISE:
        # Of two terms the first: a difference of joined rows is joined like each of them.
        return next(([(n, entries)] for n, shape in present if shape == entries.shape), None)
    if len(present) == 1 and name in _RESHAPING:
        following, shape = present[0]
        if shape.numel() == entries.numel():
            return [(following, entries.reshape(shape))]
    return None


def _pieces(
    node: Node, entries: Tensor, shapes: Sequence[torch.Size | None]
) -> list[Tensor] | None:
    """Return the entries of what a node joins; None if the sizes of several constants are open."""
    dim = _signed(node._saved_dim)
    if node.name() == "StackBackward0":
        return list(entries.unbind(dim))
    sizes = [None if shape is None else shape[dim] for shape in shapes]
    if sizes.count(None) > 1:
        return None
    rest = entries.shape[dim] - sum(size for size in sizes if size is not None)
    return list(entries.split([rest if size is None else size for size in sizes], dim))


def _signed(value: int) -> int:
    return int(value) - 2**64 if value >= 2**63 else int(value)


_RESHAPING = {
    "ViewBackward0", "UnsafeViewBackward0", "ReshapeAliasBackward0", "UnsqueezeBackward0",
    "SqueezeBackward0", "SqueezeBackward1", "SqueezeBackward2",
}  # fmt: skip
_ENTRYWISE = {
    "AddBackward0", "AliasBackward0", "CloneBackward0", "DivBackward0", "MulBackward0",
    "NegBackward0", "SubBackward0", "ToCopyBackward0",
}  # fmt: skip
