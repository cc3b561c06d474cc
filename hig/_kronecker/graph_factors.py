r"""Kronecker factors of weights that no captured call shows, from the products of the graph.

In derivatives of a network a weight W (out, in) is also a factor the other way round: gradients
of outputs times W. There the other factor belongs to the outputs of W and the gradient to its
inputs, so that the two moments change places. The block of a weight is then a sum of two Kronecker
products, one for each way. It is approximated by one, whose factors are sums of both, each
pair scaled so that both of it have the same mean eigenvalue: Dangel, Müller, Zeinhofer,
*Kronecker-Factored Approximate Curvature for Physics-Informed Neural Networks*, NeurIPS 2024,
arXiv 2405.15603, sum over such terms too.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.autograd.graph import GradientEdge

from hig._jacobian.found_layers import Place
from hig._jacobian.graph_products import Product, product_of
from hig._jacobian.layerwise import Layer
from hig._jacobian.origins import Walk
from hig._kronecker.adam import accumulation_dtype
from hig._kronecker.factors import input_factor, output_factor
from hig._kronecker.layer_factors import LayerFactors
from hig.errors import out_of_memory

__all__ = ["GraphFactors", "combined"]


@dataclass(frozen=True)
class _Use:
    """Product of a weight.

    Attributes:
        place: where it is in graphs of one structure.
        product: what it computes.
        swapped: whether its inputs are the outputs of the weight.
    """

    place: Place
    product: Product
    swapped: bool


class GraphFactors:
    """Finds the products of weights in graphs, and remembers them for the same computation."""

    def __init__(self) -> None:
        self._signature: object = None
        self._wanted: list[Tensor] = []
        self._known: tuple[int, list[_Use]] = (0, [])

    def __reduce__(self) -> tuple[type, tuple[()]]:
        """Copy and pickle nothing: another process finds the products of its own graphs."""
        return GraphFactors, ()

    def added(
        self,
        factors: Sequence[LayerFactors],
        signature: object,
        prediction: Tensor,
        probe: Tensor,
        parameters: Sequence[Tensor],
        thorough: bool,
    ) -> list[LayerFactors]:
        """Return the factors of captured layers, those of the graph in place of partial ones.

        Args:
            factors: of captured layers.
            signature: equal for computations with the same uses of the parameters.
            prediction: (B, ...), with a graph, which is kept.
            probe: random projection of the prediction.
            parameters: all that are trained.
            thorough: whether ``partial`` of the factors is set.
        """
        if thorough or signature != self._signature:
            whole = [f for f in factors if not any(p is f.layer.weight for p in f.partial)]
            layered = {id(p) for each in whole for p in each.layer.parameters}
            self._wanted = [p for p in parameters if id(p) not in layered]
            self._signature, self._known = signature, (0, [])
        if not self._wanted or prediction.grad_fn is None:
            return list(factors)
        found = self._factors(prediction, probe)
        by_graph = {id(each.layer.weight) for each in found}
        if not found:
            self._wanted = []
        kept = [each for each in factors if id(each.layer.weight) not in by_graph]
        return kept + found

    def _factors(self, prediction: Tensor, probe: Tensor) -> list[LayerFactors]:
        walk = Walk(prediction, self._wanted)
        remembered = self._known[0] == walk.structure
        if not remembered or not self._known[1]:
            self._known = walk.structure, _uses(walk, self._wanted)
        if not self._known[1]:
            return []
        try:
            return self._of_uses(walk, prediction, probe)
        except (IndexError, RuntimeError) as error:
            # Inputs without a gradient have no shape in the graph: what is remembered may not fit.
            if not remembered or (isinstance(error, RuntimeError) and out_of_memory(error)):
                raise
        self._known = walk.structure, _uses(walk, self._wanted)
        return self._of_uses(walk, prediction, probe)

    def _of_uses(self, walk: Walk, prediction: Tensor, probe: Tensor) -> list[LayerFactors]:
        """Return the factors by the known products of a graph."""
        uses = self._known[1]
        consumers = [use.place.consumer(walk) for use in uses]
        gradients = torch.autograd.grad(
            prediction,
            [GradientEdge(consumer.node, 0) for consumer in consumers],
            probe,
            retain_graph=True,
            allow_unused=True,
        )
        rows: dict[tuple[int, bool], list[tuple[Tensor, Tensor]]] = {}
        for use, consumer, gradient in zip(uses, consumers, gradients, strict=True):
            if gradient is None:
                continue
            deltas = use.product.arrange(gradient[None])[0]  # (groups, m, out)
            if use.product.operand is None:
                inputs = torch.ones_like(deltas[..., :1])
            else:
                inputs = use.product.other_factor(consumer.node)
            scale = consumer.scale
            rows.setdefault((consumer.source.number, use.swapped), []).append(
                (deltas * scale, inputs)
            )
        return [
            _of_weight(self._wanted[index], pairs, swapped)
            for (index, swapped), pairs in rows.items()
        ]


def combined(factors: Iterable[LayerFactors]) -> list[LayerFactors]:
    """Return the factors with one pair for each weight, of the whole batch."""
    by_weight: dict[int, list[LayerFactors]] = {}
    for each in factors:
        by_weight.setdefault(id(each.layer.weight), []).append(each)
    return [_joined(several) for several in by_weight.values()]


def _uses(walk: Walk, parameters: Sequence[Tensor]) -> list[_Use]:
    """Return the products of all parameters whose every use is one with two factors."""
    found: dict[int, list[_Use] | None] = {}
    for consumer in walk.consumers():
        index = consumer.source.number
        parameter = parameters[index]
        product = product_of(consumer.node, consumer.position, consumer.entries())
        use = None if product is None else _use(Place.of(consumer, walk), product, parameter)
        uses = found.setdefault(index, [])
        if use is None or uses is None:
            found[index] = None
        else:
            uses.append(use)
    kept = []
    for uses in found.values():
        shapes = {(use.swapped, tuple(use.product.entries.shape)) for use in uses or ()}
        if len(shapes) == len({swapped for swapped, _ in shapes}):  # one for each way
            kept += uses or []
    return kept


def _use(place: Place, product: Product, parameter: Tensor) -> _Use | None:
    """Return the use of a weight; None for one of other entries, or a scale without factors."""
    if parameter.is_complex() or product.entries.is_complex():
        return None
    groups, fan_in, fan_out = product.entries.shape
    if fan_in == fan_out == 1:
        return None
    in_order = torch.arange(parameter.numel(), device="cpu")
    # Of a weight with a single output or input both hold.
    rows = groups * fan_out if parameter.ndim == 1 else len(parameter)
    if rows == groups * fan_out and torch.equal(product.columns, in_order):
        return _Use(place, product, swapped=False)
    if torch.equal(product.entries.flatten().long(), in_order):
        return _Use(place, product, swapped=True)
    return None


def _of_weight(
    weight: Tensor, pairs: Sequence[tuple[Tensor, Tensor]], swapped: bool
) -> LayerFactors:
    dtype = accumulation_dtype(weight.dtype)
    deltas = torch.cat([part.to(dtype) for part, _ in pairs], 1)
    inputs = torch.cat([part.to(dtype) for _, part in pairs], 1)
    return LayerFactors(
        Layer(weight, None, ()),
        output_factor(deltas.unsqueeze(0)),
        input_factor(inputs.unsqueeze(0), bias=False),
        inputs.shape[1],
        swapped=swapped,
    )


def _joined(several: Sequence[LayerFactors]) -> LayerFactors:
    pairs = [(f.inputs, f.outputs) if f.swapped else (f.outputs, f.inputs) for f in several]
    outputs, inputs = pairs[0]
    if len(pairs) > 1:
        outputs, inputs = torch.zeros_like(outputs), torch.zeros_like(inputs)
        for left, right in pairs:
            ratio = (_mean_eigenvalue(right) / _mean_eigenvalue(left)).sqrt()
            usable = torch.isfinite(ratio) & (ratio > 0)
            ratio = torch.where(usable, ratio, torch.ones_like(ratio))
            outputs += left * ratio
            inputs += right / ratio / len(pairs)
    return replace(several[0], outputs=outputs, inputs=inputs, swapped=False)


def _mean_eigenvalue(factor: Tensor) -> Tensor:
    return factor.diagonal(dim1=-2, dim2=-1).mean(-1)[:, None, None]
