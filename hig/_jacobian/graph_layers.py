"""Layers of a graph: all products that one parameter, or several together, take part in."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.autograd.graph import GradientEdge

from hig._jacobian.factored_block import FactoredBlock
from hig._jacobian.formed_block import Factors
from hig._jacobian.graph_uses import GatheredPatches, GraphUse
from hig._jacobian.pulled_block import PulledBlock
from hig._jacobian.rearranged_block import RearrangedBlock
from hig._torch.autograd_graph import Node, real_view
from hig._torch.batched_vjp import dense
from hig.errors import out_of_memory

__all__ = ["GraphLayer", "GraphLayers", "Pull", "Share"]


@dataclass(frozen=True)
class Pull:
    """Derivative of a weight by the parameters of a layer that determine it.

    Attributes:
        node: the node of the weight.
        parameters: the parameters.
        columns: first column of each of them in the layer.
        width: number of columns of the layer.
    """

    node: Node
    parameters: Sequence[Tensor]
    columns: Sequence[int]
    width: int

    def __call__(self, rows: Tensor) -> Tensor:
        """Pull rows (k, entries of the weight), float64, back: (k, columns of the layer)."""
        weight = self.node._input_metadata[0]
        real = weight.dtype.to_real()
        if weight.dtype.is_complex:
            cotangents = torch.view_as_complex(rows.to(real).unflatten(1, (-1, 2)))
        else:
            cotangents = rows.to(real)
        cotangents = cotangents.view(-1, *weight.shape)
        gradients = self._gradients(cotangents)
        pulled = rows.new_zeros((len(rows), self.width))
        for gradient, start in zip(gradients, self.columns, strict=True):
            flat = real_view(dense(gradient)).reshape(len(rows), -1)
            pulled[:, start : start + flat.shape[1]] = flat
        return pulled

    def _gradients(self, cotangents: Tensor) -> Sequence[Tensor]:
        outputs, inputs = [GradientEdge(self.node, 0)], list(self.parameters)
        try:
            return torch.autograd.grad(
                outputs, inputs, [cotangents], retain_graph=True, is_grads_batched=True
            )
        except RuntimeError as error:  # an operation that takes one cotangent at a time
            if out_of_memory(error):
                raise
        passes = [torch.autograd.grad(outputs, inputs, [c], retain_graph=True) for c in cotangents]
        return [torch.stack(of_parameter) for of_parameter in zip(*passes, strict=True)]


@dataclass(frozen=True)
class Share:
    """Products whose weights are the same entries of a parameter, in the same order.

    Attributes:
        columns: the column of each weight (groups, out, in); None if they are all, in order.
        uses: the products.
        size: number of columns that ``columns`` counts.
        pull: derivative of the weight if that is no parameter itself.
        bias: whether a bias is added in each of the products.
    """

    columns: Tensor | None
    uses: Sequence[GraphUse]
    size: int
    pull: Pull | None = None
    bias: bool = False

    def factors(self, gradients: Mapping[int, Tensor]) -> Factors:
        """Return the columns of these products, from gradients by the identity of the use."""
        deltas = [use.deltas(gradients[id(use)]) for use in self.uses]
        operands = [use.operand() for use in self.uses]
        joined = torch.cat(deltas, 3) if len(deltas) > 1 else deltas[0]
        given = [operand for operand in operands if operand is not None]
        if not given:
            block = FactoredBlock(joined, None, 0, bias=True)
        else:
            patches = torch.cat(given, 2) if len(given) > 1 else given[0]
            fan_in = patches.shape[-1]
            block = FactoredBlock(joined, GatheredPatches(patches), fan_in, bias=self.bias)
        arranged: FactoredBlock | RearrangedBlock = block
        if self.columns is not None:
            arranged = RearrangedBlock(block, self.columns, self.size)
        if self.pull is None:
            return arranged
        return PulledBlock(arranged, self.pull, self.pull.width)


@dataclass(frozen=True)
class GraphLayer:
    """Layer: all products of one parameter, or of those that determine weights together.

    Attributes:
        parameters: the parameters.
        shares: the products, by the entries that they use.
        key: what distinguishes it from layers of other graphs.
        by_outputs: whether samples and outputs have changed places: all samples share a place.
    """

    parameters: Sequence[Tensor]
    shares: Sequence[Share]
    key: tuple[object, ...]
    by_outputs: bool = False

    @property
    def structure(self) -> tuple[object, ...]:
        """What distinguishes layers of the same parameters, whatever the batch."""
        return ("graph", *self.key)

    @property
    def uses(self) -> list[GraphUse]:
        """All products."""
        return [use for share in self.shares for use in share.uses]

    @property
    def must_be_formed(self) -> bool:
        """Whether the columns are a sum that has no factors of its own."""
        if len(self.shares) > 1 or self.by_outputs or self.shares[0].pull is not None:
            return True
        columns = self.shares[0].columns
        return columns is not None and len(columns.unique()) < len(columns)

    def numbers(self, outputs: int) -> int:
        """Return the numbers that the factors consist of, with the gradients of D outputs."""
        return sum(use.numbers(outputs) for use in self.uses)

    def factors(self, gradients: Mapping[int, Tensor], samples: int) -> list[Factors]:
        """Return the factors, whose sum the columns are, from the gradients of the uses."""
        return [share.factors(gradients) for share in self.shares]


@dataclass
class GraphLayers:
    """Layers of one graph.

    Attributes:
        layers: the layers.
        passes: cotangents (passes, *prediction.shape) that give one row of each sample, where a
            sample is an entry of the prediction; None if the usual passes do.
        reasons: why a parameter has no layer, by its index; empty where samples influence one
            another.
        remembered: whether the samples of all places are taken from an earlier graph.
    """

    layers: list[GraphLayer] = field(default_factory=list)
    passes: Tensor | None = None
    reasons: dict[int, str] = field(default_factory=dict)
    remembered: bool = False
