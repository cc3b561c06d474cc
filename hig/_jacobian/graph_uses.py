"""Products of a graph with the entries of a parameter, by sample."""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor
from torch.autograd.graph import GradientEdge

from hig._jacobian.graph_products import Product
from hig._jacobian.origins import Consumer
from hig._jacobian.places import Places

__all__ = ["GatheredPatches", "GraphUse"]


class GraphUse:
    """One product of a graph with the entries of a parameter, by sample.

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
        output = consumer.node._input_metadata[0]
        self.output_shape, self.dtype = torch.Size(output.shape), output.dtype

    def deltas(self, gradients: Tensor) -> Tensor:
        """Arrange gradients (D, *output_shape) as (B, D, groups, U, out)."""
        arranged = self._product.arrange(gradients)  # (D, groups, m, out)
        scale = self._consumer.scale
        if isinstance(scale, Tensor) or scale != 1:
            arranged = arranged * (scale.conj() if isinstance(scale, Tensor) else scale)
        if self._passes > 1:
            arranged = arranged.transpose(0, 1).flatten(1, 2).unsqueeze(0)
        taken = self._places.take(arranged, 2).permute(2, 0, 1, 3, 4)
        return _real_deltas(taken, self._product) if taken.is_complex() else taken

    def numbers(self, outputs: int) -> int:
        """Return the numbers of the factors, with the gradients of D outputs."""
        _, fan_in, fan_out = self._product.entries.shape
        size = self.output_shape.numel() * (4 if self.dtype.is_complex else 1)
        return outputs * size + (0 if self._product.ones else size // fan_out * fan_in)

    def operand(self) -> Tensor | None:
        """Return the other factor (B, groups, U, in); None if it is one."""
        if self._product.operand is None:
            return None
        operand = self._product.other_factor(self._consumer.node)  # (groups, m, in)
        if self._passes > 1:
            operand = operand.repeat(1, self._passes, 1)
        taken = self._places.take(operand, 1).transpose(0, 1)
        if not self.dtype.is_complex:
            return taken
        imaginary = taken.imag if taken.is_complex() else torch.zeros_like(taken)
        return torch.cat([taken.real, imaginary], 2)


def _real_deltas(deltas: Tensor, product: Product) -> Tensor:
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
