"""Search for the layers of a graph, done once for graphs of the same structure.

What a program calls need not be a layer: derivatives of a network, recurrent cells and scales of
normalisations multiply weights too. The autograd graph knows every such product, and the other
factor of each.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from hig._jacobian.capture import ForwardPass
from hig._jacobian.graph_layers import GraphLayer, GraphLayers, Pull, Share
from hig._jacobian.graph_products import Product, product_of
from hig._jacobian.graph_uses import GraphUse
from hig._jacobian.origins import Consumer, Source, Walk
from hig._jacobian.places import Places, Plan, find_plan
from hig._torch.autograd_graph import real_size

__all__ = ["FoundLayers", "Place"]

# Graphs remembered.
MOST = 16
# Steps until what was refused is searched again, doubled with each time, and their maximum: the
# numbers of one batch may have been the reason.
FIRST, LAST = 4, 1024
# Entries of a weight over those of the parameters that determine it, and the bytes of its columns
# in all rows, up to which these are formed.
MOST_DERIVED, MOST_DERIVED_BYTES = 4, 64 * 2**20
# Rounds in which weights are found that other weights determine.
ROUNDS = 16


class FoundLayers:
    """Finds the layers of graphs, and remembers what is known of those of the same structure.

    Attributes:
        joins: whether a weight and its bias are one layer where one operation has both. With
            another number of samples it may be two, and process ranks need the same layers.
    """

    def __init__(self) -> None:
        self.joins = True
        self._recipes: dict[object, _Known] = {}

    def find(self, forward: ForwardPass, wanted: Sequence[int]) -> GraphLayers:
        """Find the layers of some parameters.

        Args:
            forward: prediction and parameters.
            wanted: indices of the parameters.
        """
        prediction = forward.prediction
        parameters = [forward.parameters[index] for index in wanted]
        walk = Walk(prediction, parameters)
        key = (
            tuple(prediction.shape), prediction.dtype, tuple(wanted), walk.structure,
        )  # fmt: skip
        known = self._recipes.pop(key, None)
        remembered = known is not None and not known.is_due
        if known is None or known.is_due:
            recipe = _Cook(prediction, parameters, walk, self.joins).recipe()
            known = _Known(recipe, FIRST if known is None else min(2 * known.limit, LAST))
        known.uses += 1
        self._recipes[key] = known
        while len(self._recipes) > MOST:
            del self._recipes[next(iter(self._recipes))]
        layers = _layers(known.recipe, walk, parameters, wanted, hash(key))
        layers.remembered = remembered
        return layers

    def __reduce__(self) -> tuple[type, tuple[()]]:
        """Copy and pickle nothing: another process finds the layers of its own graphs."""
        return FoundLayers, ()

    def forget(self) -> None:
        """Forget all: a graph was other than it looked."""
        self._recipes.clear()


@dataclass(frozen=True)
class _Members:
    """Products that are to be one :class:`Share`: their numbers."""

    source: Source
    columns: Tensor | None
    shape: tuple[int, ...]
    ones: bool
    numbers: list[int]

    def takes(self, source: Source, product: Product, columns: Tensor | None) -> bool:
        """Return whether a product has the same weights."""
        same = self.source, self.shape, self.ones
        if same != (source, tuple(product.entries.shape), product.ones):
            return False
        return columns is self.columns  # equal ones are the same


@dataclass
class _Known:
    """A recipe, with the number of its uses and that after which a refusal is looked at again."""

    recipe: "_Recipe"
    limit: int
    uses: int = 0

    @property
    def is_due(self) -> bool:
        """Whether what was refused is to be searched again."""
        return bool(self.recipe.reasons) and self.uses >= self.limit


@dataclass(frozen=True)
class Place:
    """Place of a consumer in graphs of one structure: numbers of nodes."""

    node: int
    position: int
    source: Source
    chain: tuple[tuple[int, int], ...]

    @staticmethod
    def of(consumer: Consumer, walk: Walk) -> "Place":
        """Return the place of a consumer."""
        chain = tuple((walk.numbers[node], output) for node, output in consumer.chain)
        return Place(walk.numbers[consumer.node], consumer.position, consumer.source, chain)

    def consumer(self, walk: Walk) -> Consumer:
        """Return the consumer at this place of another graph."""
        chain = tuple((walk.nodes[number], output) for number, output in self.chain)
        return Consumer(walk.nodes[self.node], self.position, self.source, chain)


@dataclass(frozen=True)
class _LayerPlan:
    """Parameters of one layer, and its products.

    Attributes:
        indices: the parameters.
        shares: the products.
        by_outputs: whether samples and outputs change places.
        with_bias: whether the second parameter is the bias of the first one.
    """

    indices: list[int]
    shares: list[_Members]
    by_outputs: bool
    with_bias: bool = False


@dataclass(frozen=True)
class _Recipe:
    """What is known of graphs of one structure: holds no tensor of any of them."""

    places: list[Place]
    products: list[Product | None]
    plan: Plan
    layers: list[_LayerPlan]
    reasons: dict[int, str]


def _layers(
    recipe: _Recipe,
    walk: Walk,
    parameters: Sequence[Tensor],
    wanted: Sequence[int],
    key: int,
) -> GraphLayers:
    """Return the layers of a graph by the recipe for its structure."""
    consumers = [place.consumer(walk) for place in recipe.places]
    passes = recipe.plan.passes
    count = 1 if passes is None else len(passes)
    layers = []
    for plan in recipe.layers:
        indices = plan.indices
        own = [parameters[index] for index in indices]
        first, width = _columns(own)
        shares = []
        for members in plan.shares:
            uses = []
            for number in members.numbers:
                product, places = recipe.products[number], recipe.plan.places[number]
                assert product is not None and places is not None
                uses.append(GraphUse(consumers[number], product, places, count))
            source = members.source
            if plan.with_bias:
                shares.append(Share(None, uses, width, bias=True))
                continue
            if source.is_parameter:
                columns = members.columns
                if len(indices) > 1:
                    start = first[indices.index(source.number)]
                    flat = torch.arange(source.size, device="cpu") if columns is None else columns
                    columns = flat + start
                shares.append(Share(columns, uses, width))
                continue
            of = [index for index in walk.parameters_of(-1 - source.number) if index in indices]
            pull = Pull(
                walk.nodes[-1 - source.number],
                [parameters[index] for index in of],
                [first[indices.index(index)] for index in of],
                width,
            )
            shares.append(Share(members.columns, uses, source.size, pull))
        numbers = tuple(wanted[index] for index in indices)
        layers.append(GraphLayer(own, shares, (*numbers, key), plan.by_outputs))
    reasons = {wanted[index]: reason for index, reason in recipe.reasons.items()}
    return GraphLayers(layers, passes, reasons)


def _columns(parameters: Sequence[Tensor]) -> tuple[list[int], int]:
    """Return the first column of each parameter, and the number of columns."""
    first, width = [], 0
    for parameter in parameters:
        first.append(width)
        width += real_size(parameter)
    return first, width


@dataclass
class _Round:
    """Consumers of one set of sources, and what was found of them."""

    consumers: list[Consumer]
    products: list[Product | None]
    columns: list[Tensor | None]
    plan: Plan
    reasons: dict[int, str] = field(default_factory=dict)


class _Cook:
    """Search for the products of a graph and the samples of their places.

    Args:
        prediction: (B, ...), with a graph.
        parameters: the parameters whose layers are searched.
        walk: the walk over the graph.
        joins: whether weights and biases may be one layer.
    """

    def __init__(
        self, prediction: Tensor, parameters: Sequence[Tensor], walk: Walk, joins: bool = True
    ):
        self._prediction, self._parameters, self._walk = prediction, parameters, walk
        self._joins = joins

    def recipe(self) -> _Recipe:
        """Return what is found."""
        derived: frozenset[int] = frozenset()
        found = first = self._round(derived)
        for _ in range(ROUNDS):
            more = {number for i in found.reasons for number in self._derived(found, i, derived)}
            if not more:
                break
            derived |= more
            found = self._round(derived)
        recipe = self._assembled(found)
        if not recipe.reasons or found is first:
            return recipe
        # What parameters alone determine may be a whole network of which nothing is gained.
        plain = self._assembled(first)
        return plain if self._left(plain) <= self._left(recipe) else recipe

    def _derived(self, found: "_Round", i: int, derived: frozenset[int]) -> list[int]:
        """Return the number of the node of a consumer if its result is worth being a source."""
        node = found.consumers[i].node
        if not self._walk.determined(node, derived):
            return []
        number = self._walk.numbers[node]
        size = torch.Size(node._input_metadata[0].shape).numel()
        of = sum(real_size(self._parameters[index]) for index in self._walk.parameters_of(number))
        bytes_ = 8 * size * self._prediction.numel()
        return [number] if size <= MOST_DERIVED * of and bytes_ <= MOST_DERIVED_BYTES else []

    def _left(self, recipe: _Recipe) -> int:
        """Return the number of entries of the parameters without a layer."""
        return sum(self._parameters[index].numel() for index in recipe.reasons)

    def _round(self, derived: frozenset[int]) -> _Round:
        consumers = list(self._walk.consumers(derived))
        shelf = _Shelf()
        found = [shelf.product(consumer) for consumer in consumers]
        products, columns = [product for product, _ in found], [own for _, own in found]
        reasons = {
            i: f"it is used by {_readable(consumer.node.name())}, which is no product that can be "
            "told apart by sample"
            for i, (consumer, product) in enumerate(zip(consumers, products, strict=True))
            if product is None
        }
        tried = [i for i, product in enumerate(products) if product is not None]
        arranged = [product.arrange for product in products if product is not None]
        plan = find_plan(self._prediction, [(consumers[i].node, 0) for i in tried], arranged)
        places: list[Places | None] = [None] * len(consumers)
        by_outputs = [False] * len(consumers)
        for place, i in enumerate(tried):
            places[i], by_outputs[i] = plan.places[place], plan.by_outputs[place]
            if places[i] is None:
                reasons[i] = ""  # samples influence one another
        plan = Plan(plan.passes, places, by_outputs)
        return _Round(consumers, products, columns, plan, reasons)

    def _assembled(self, found: _Round) -> _Recipe:
        """Group the products by the parameters that they are columns of."""
        depends = [self._indices(consumer.source) for consumer in found.consumers]
        reasons: dict[int, str] = {}
        for i, reason in found.reasons.items():
            for index in depends[i]:
                reasons.setdefault(index, reason)
        groups = _connected(depends)
        layers = []
        for indices in groups:
            members = [i for i, of in enumerate(depends) if set(of) <= indices]
            refused = next((reasons[index] for index in sorted(indices) if index in reasons), None)
            kinds = {found.plan.by_outputs[i] for i in members}
            if refused is None and len(kinds) > 1:
                refused = ""
            if refused is not None:
                reasons.update(dict.fromkeys(indices, refused))
                continue
            shares: list[_Members] = []
            for i in members:
                product = found.products[i]
                assert product is not None
                _join(shares, i, found.consumers[i].source, product, found.columns[i])
            layers.append(_LayerPlan(sorted(indices), shares, kinds.pop()))
        layers = _with_biases(layers, found.consumers) if self._joins else layers
        places = [Place.of(consumer, self._walk) for consumer in found.consumers]
        return _Recipe(places, found.products, found.plan, layers, reasons)

    def _indices(self, source: Source) -> list[int]:
        if source.is_parameter:
            return [source.number]
        return self._walk.parameters_of(-1 - source.number)


def _with_biases(layers: Sequence[_LayerPlan], consumers: Sequence[Consumer]) -> list[_LayerPlan]:
    """Join each weight with the bias that is added in the same operations, and in no other."""
    of_bias: dict[frozenset[int], _LayerPlan] = {}
    for layer in layers:
        if _is_plain(layer, consumers, ones=True):
            of_bias[_nodes(layer, consumers)] = layer
    joined, taken = [], set()
    for layer in layers:
        bias = None
        if _is_plain(layer, consumers, ones=False):
            bias = of_bias.get(_nodes(layer, consumers))
        if bias is not None and bias.by_outputs == layer.by_outputs:
            taken.add(id(bias))
            indices = [*layer.indices, *bias.indices]
            layer = _LayerPlan(indices, layer.shares, layer.by_outputs, with_bias=True)
        joined.append(layer)
    return [layer for layer in joined if id(layer) not in taken]


def _is_plain(layer: _LayerPlan, consumers: Sequence[Consumer], ones: bool) -> bool:
    """Return whether a layer is a weight, or with ``ones`` a bias, of linear layers alone."""
    if len(layer.indices) > 1 or len(layer.shares) > 1:
        return False
    (share,) = layer.shares
    own = [consumers[i] for i in share.numbers]
    arranged = {node.name() for consumer in own for node, _ in consumer.chain}
    return (
        share.columns is None
        and share.ones == ones
        and share.source.is_parameter
        and not share.source.dtype.is_complex
        and arranged <= ({"TBackward0"} if not ones else set())
        and all(consumer.node.name() == "AddmmBackward0" for consumer in own)
    )


def _nodes(layer: _LayerPlan, consumers: Sequence[Consumer]) -> frozenset[int]:
    return frozenset(id(consumers[i].node) for i in layer.shares[0].numbers)


def _connected(sets: Sequence[Sequence[int]]) -> list[set[int]]:
    """Return the unions of sets that have members in common."""
    unions: list[set[int]] = []
    for members in sets:
        joined = set(members)
        for union in [union for union in unions if union & joined]:
            joined |= union
            unions.remove(union)
        unions.append(joined)
    return unions


def _join(
    shares: list[_Members], i: int, source: Source, product: Product, columns: Tensor | None
) -> None:
    """Add a product to those with the same weights, or as another share."""
    for share in shares:
        if share.takes(source, product, columns):
            share.numbers.append(i)
            return
    shares.append(_Members(source, columns, tuple(product.entries.shape), product.ones, [i]))


class _Shelf:
    """Products of one search: equal ones are made once, and their entries are not kept."""

    def __init__(self) -> None:
        self._made: dict[object, tuple[Product | None, Tensor | None]] = {}
        self._columns: dict[int, list[Tensor]] = {}

    def product(self, consumer: Consumer) -> tuple[Product | None, Tensor | None]:
        """Return the product of a consumer, and its columns; None for all of them in order."""
        signature = consumer.signature
        if signature is not None and signature in self._made:
            return self._made[signature]
        product = product_of(consumer.node, consumer.position, consumer.entries())
        made: tuple[Product | None, Tensor | None] = None, None
        if product is not None:
            made = product.light(), self._shared(consumer.source, product.columns)
        if signature is not None:
            self._made[signature] = made
        return made

    def _shared(self, source: Source, columns: Tensor) -> Tensor | None:
        if torch.equal(columns, torch.arange(source.size, device="cpu")):
            return None
        known = self._columns.setdefault(source.number, [])
        for other in known:
            if torch.equal(columns, other):
                return other
        known.append(columns)
        return columns


def _readable(name: str) -> str:
    return name.removesuffix("0").removesuffix("Backward")
