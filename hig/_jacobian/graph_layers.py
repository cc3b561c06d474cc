"""Layers found in the graph of a prediction: all products in which a parameter takes part.

What a program calls need not be a layer: derivatives of a network, recurrent cells and scales of
normalisations multiply weights too. The autograd graph knows every such product, and the other
factor of each.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.autograd.graph import GradientEdge

from hig._jacobian.capture import ForwardPass
from hig._jacobian.factored_block import FactoredBlock
from hig._jacobian.graph_products import Product, product_of
from hig._jacobian.origins import Consumer, find_consumers
from hig._jacobian.places import Places, Plan, find_plan
from hig._jacobian.rearranged_block import RearrangedBlock

Factors = FactoredBlock | RearrangedBlock

__all__ = ["FoundLayers", "GraphLayer", "GraphLayers", "GraphUse"]

# Graphs remembered.
MOST = 16


class GraphUse:
    """One product of a graph with a parameter, by sample.

    Args:
        consumer: the operation of this graph.
        product: what it computes.
        places: the samples of its places.
        passes: backward passes that together give one row of each sample; 1 for one a row.
    """

    def __init__(self, consumer: Consumer, product: Product, places: Places, passes: int = 1):
        self._product, self._places, self._passes = product, places, passes
        self._consumer = consumer
        self.edge = GradientEdge(consumer.node, 0)
        self._of_complex = bool(consumer.node._input_metadata[0].dtype.is_complex)
        self.output_shape = torch.Size(consumer.node._input_metadata[0].shape)

    def deltas(self, gradients: Tensor) -> Tensor:
        """Arrange gradients (D, *output_shape) as (B, D, groups, U, out)."""
        arranged = self._product.arrange(gradients)  # (D, groups, m, out)
        if (scale := self._consumer.scale) != 1:
            arranged = arranged * scale
        if self._passes > 1:
            arranged = arranged.transpose(0, 1).flatten(1, 2).unsqueeze(0)
        taken = self._places.take(arranged, 2).permute(2, 0, 1, 3, 4)
        return real_deltas(taken, self._product) if taken.is_complex() else taken

    def numbers(self, outputs: int) -> int:
        """Return the numbers of the factors, with the gradients of D outputs."""
        _, fan_in, fan_out = self._product.entries.shape
        size = self.output_shape.numel()
        size = 4 * size if self._of_complex else size
        return outputs * size + (0 if self._product.ones else size // fan_out * fan_in)

    def operand(self) -> Tensor | None:
        """Return the other factor (B, groups, U, in); None if it is one."""
        if self._product.operand is None:
            return None
        operand = self._product.operand(self._consumer.node).detach()  # (groups, m, in)
        if self._passes > 1:
            operand = operand.repeat(1, self._passes, 1)
        taken = self._places.take(operand, 1).transpose(0, 1)
        if not taken.is_complex() and not self._of_complex:
            return taken
        imaginary = taken.imag if taken.is_complex() else torch.zeros_like(taken)
        return torch.cat([taken.real, imaginary], 2)


def real_deltas(deltas: Tensor, product: Product) -> Tensor:
    r"""Return gradients of complex products as those of real ones, (B, D, groups, 2 U, out).

    The gradient of w by z = a w is :math:`\bar a \delta`: with the real part of a as the other
    factor the gradients are those of real and imaginary part of :math:`\delta`, with the imaginary
    part of a those of :math:`-i \delta`. Of a real w it is the real part alone.
    """
    if not product.entries.is_complex():
        parts = [deltas.real] if product.ones else [deltas.real, deltas.imag]
    else:
        turned = [deltas] if product.ones else [deltas, -1j * deltas]
        parts = [torch.view_as_real(part.resolve_conj()).flatten(-2) for part in turned]
    return torch.cat(parts, 3)


class GatheredPatches:
    """Other factors of the products of a layer, by sample.

    Args:
        inputs: (B, groups, U, in).
    """

    def __init__(self, inputs: Tensor):
        self._inputs = inputs

    def __call__(self, samples: slice) -> Tensor:
        """Return the patches (b, groups, U, in) of a slice of samples."""
        return self._inputs[samples]

    def pieces(self, samples: slice, most: int) -> Iterator[tuple[slice, Tensor]]:
        """Yield slices of about ``most`` uses, with their patches (b, groups, u, in), float64."""
        start = 0
        for piece in self._inputs[samples].split(most, 2):
            yield slice(start, start + piece.shape[2]), piece.double()
            start += piece.shape[2]

    def squares(self, samples: slice) -> Tensor:
        """Return the squared norms (b, groups, U) of these patches, float64."""
        return self._inputs[samples].double().square().sum(-1)

    @property
    def dtypes(self) -> set[torch.dtype]:
        """Precisions of the factors."""
        return {self._inputs.dtype}

    def inputs(self) -> list[Tensor]:
        """Return the tensors (B, ...) that the patches are made of."""
        return [self._inputs]

    def of(self, inputs: Sequence[Tensor]) -> "GatheredPatches":
        """Return the patches of other samples, from the ``inputs`` of these."""
        return GatheredPatches(inputs[0])


@dataclass(frozen=True)
class _Share:
    """Products of a parameter whose weights are the same entries of it, in the same order.

    Attributes:
        columns: the entry of each weight (groups, out, in); None if they are all, in order.
        uses: the products.
    """

    columns: Tensor | None
    uses: Sequence[GraphUse]

    def factors(self, gradients: Mapping[int, Tensor], size: int) -> Factors:
        """Return the columns of these products.

        Args:
            gradients: by the identity of the use.
            size: number of entries of the parameter.
        """
        deltas = [use.deltas(gradients[id(use)]) for use in self.uses]
        operands = [use.operand() for use in self.uses]
        joined = torch.cat(deltas, 3) if len(deltas) > 1 else deltas[0]
        given = [operand for operand in operands if operand is not None]
        if not given:
            block = FactoredBlock(joined, None, 0, bias=True)
        else:
            patches = torch.cat(given, 2) if len(given) > 1 else given[0]
            block = FactoredBlock(joined, GatheredPatches(patches), patches.shape[-1], bias=False)
        return block if self.columns is None else RearrangedBlock(block, self.columns, size)


@dataclass(frozen=True)
class GraphLayer:
    """Layer: all products of one parameter.

    Attributes:
        parameter: the parameter.
        shares: its products, by the entries that they use.
        key: what distinguishes it from layers of other graphs.
    """

    parameter: Tensor
    shares: Sequence[_Share]
    key: tuple[object, ...]

    @property
    def parameters(self) -> list[Tensor]:
        """The parameter, as a list."""
        return [self.parameter]

    @property
    def structure(self) -> tuple[object, ...]:
        """What distinguishes layers of the same parameter, whatever the batch."""
        return ("graph", *self.key)

    @property
    def uses(self) -> list[GraphUse]:
        """All products."""
        return [use for share in self.shares for use in share.uses]

    @property
    def must_be_formed(self) -> bool:
        """Whether the columns are a sum that has no factors of its own."""
        if len(self.shares) > 1:
            return True
        columns = self.shares[0].columns
        return columns is not None and len(columns.unique()) < len(columns)

    def numbers(self, outputs: int) -> int:
        """Return the numbers that the factors consist of, with the gradients of D outputs."""
        return sum(use.numbers(outputs) for use in self.uses)

    def factors(self, gradients: Mapping[int, Tensor], samples: int) -> list[Factors]:
        """Return the factors, whose sum the columns are, from the gradients of the uses."""
        return [share.factors(gradients, real_size(self.parameter)) for share in self.shares]


@dataclass
class GraphLayers:
    """Layers of one graph.

    Attributes:
        layers: the layers.
        passes: cotangents (passes, *prediction.shape) that give one row of each sample, where a
            sample is an entry of the prediction; None if the usual passes do.
        reasons: why a parameter has no layer, by its index.
    """

    layers: list[GraphLayer] = field(default_factory=list)
    passes: Tensor | None = None
    reasons: dict[int, str] = field(default_factory=dict)


@dataclass(frozen=True)
class _SharePlan:
    """Products of a parameter that are to be one :class:`_Share`: their numbers."""

    columns: Tensor | None
    shape: tuple[int, ...]
    ones: bool
    members: list[int]

    def takes(self, product: Product, columns: Tensor | None) -> bool:
        """Return whether a product has the same weights."""
        if (self.shape, self.ones) != (tuple(product.entries.shape), product.ones):
            return False
        if columns is None or self.columns is None:
            return columns is self.columns
        return torch.equal(columns, self.columns)


@dataclass(frozen=True)
class _Recipe:
    """What is known of graphs of one structure: holds no tensor of any of them."""

    products: list[Product | None]
    plan: Plan
    shares: dict[int, list[_SharePlan]]
    reasons: dict[int, str]


class FoundLayers:
    """Finds the layers of graphs, and remembers what is known of those of the same structure."""

    def __init__(self) -> None:
        self._recipes: dict[object, _Recipe] = {}

    def find(self, forward: ForwardPass, wanted: Sequence[int]) -> GraphLayers:
        """Find the layers of some parameters.

        Args:
            forward: prediction and parameters.
            wanted: indices of the parameters.
        """
        prediction, parameters = forward.prediction, forward.parameters
        found = find_consumers(prediction, [parameters[index] for index in wanted])
        consumers = list(found)
        key = (
            tuple(prediction.shape), prediction.dtype, tuple(wanted),
            *(consumer.structure for consumer in consumers),
        )  # fmt: skip
        recipe = self._recipes.pop(key, None)
        if recipe is None:
            recipe = _recipe(prediction, [parameters[index] for index in wanted], consumers)
        self._recipes[key] = recipe
        while len(self._recipes) > MOST:
            del self._recipes[next(iter(self._recipes))]
        passes = recipe.plan.passes
        layers = []
        for index, shares in recipe.shares.items():
            made = []
            for share in shares:
                uses = []
                for i in share.members:
                    product, places = recipe.products[i], recipe.plan.places[i]
                    assert product is not None and places is not None
                    count = 1 if passes is None else len(passes)
                    uses.append(GraphUse(consumers[i], product, places, count))
                made.append(_Share(share.columns, uses))
            number = wanted[index]
            layers.append(GraphLayer(parameters[number], made, (number, hash(key))))
        reasons = {wanted[index]: reason for index, reason in recipe.reasons.items()}
        return GraphLayers(layers, passes, reasons)

    def __reduce__(self) -> tuple[type, tuple[()]]:
        """Copy and pickle nothing: another process finds the layers of its own graphs."""
        return FoundLayers, ()

    def forget(self) -> None:
        """Forget all: a graph was other than it looked."""
        self._recipes.clear()


def _recipe(
    prediction: Tensor, parameters: Sequence[Tensor], consumers: Sequence[Consumer]
) -> _Recipe:
    reasons: dict[int, str] = {}
    products: list[Product | None] = []
    for consumer in consumers:
        product = product_of(consumer.node, consumer.position, consumer.entries())
        products.append(product)
        if product is None:
            reasons.setdefault(
                consumer.parameter,
                f"it is used by {_readable(consumer.node.name())}, which is no product that can be "
                "told apart by sample",
            )
    tried = [
        i
        for i, consumer in enumerate(consumers)
        if consumer.parameter not in reasons
    ]
    kept = [products[i] for i in tried]
    edges = [(consumers[i].node, 0) for i in tried]
    found = find_plan(prediction, edges, [product.arrange for product in kept if product])
    places: list[Places | None] = [None] * len(consumers)
    for i, of_product in zip(tried, found.places, strict=True):
        places[i] = of_product
        if of_product is None:
            reasons.setdefault(consumers[i].parameter, "samples influence one another")
    shares: dict[int, list[_SharePlan]] = {}
    for i in tried:
        index, product = consumers[i].parameter, products[i]
        if index in reasons or product is None:
            continue
        _join(shares.setdefault(index, []), i, product, real_size(parameters[index]))
    return _Recipe(products, Plan(found.passes, places), shares, reasons)


def _join(shares: list[_SharePlan], i: int, product: Product, size: int) -> None:
    """Add a product to those with the same entries, or as another share."""
    columns = product.columns
    in_order: Tensor | None = columns
    if torch.equal(columns, torch.arange(size, device="cpu")):
        in_order = None
    for share in shares:
        if share.takes(product, in_order):
            share.members.append(i)
            return
    shares.append(_SharePlan(in_order, tuple(product.entries.shape), product.ones, [i]))


def real_size(parameter: Tensor) -> int:
    """Return the number of real numbers that a parameter consists of."""
    return parameter.numel() * (2 if parameter.is_complex() else 1)


def _readable(name: str) -> str:
    return name.removesuffix("0").removesuffix("Backward")
