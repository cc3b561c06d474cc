"""Matrix-free columns of the joint Jacobian: products with vectors, by autograd."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property

import torch
from torch import Tensor

from hig._jacobian.rows import StreamedBlock
from hig._torch.autograd_graph import from_real, real_size
from hig._torch.batched_vjp import BatchedVJP
from hig.errors import out_of_memory

__all__ = ["ProductBlock"]


class ProductBlock(StreamedBlock):
    """Matrix-free block, whose products with vectors cost a backward pass each.

    Args:
        prediction: (B, ...), with a graph that can be differentiated twice.
        parameters: the parameters of the columns.
        backward: runs the passes for rows, if those are asked for.
    """

    def __init__(self, prediction: Tensor, parameters: Sequence[Tensor], backward: BatchedVJP):
        super().__init__(prediction, parameters, backward)

    def jvp(self, direction: Tensor) -> Tensor:
        """J d in the precision of the graph, as the derivative of Jᵀ c in c, which is linear.

        Raises:
            ValueError: the graph cannot be differentiated twice.
        """
        cotangent, gradients = self._transposed
        sizes = list(map(real_size, self._parameters))
        parts = [
            from_real(part, gradient)
            for part, gradient in zip(direction.split(sizes), gradients, strict=True)
        ]
        used = [(g, part) for g, part in zip(gradients, parts, strict=True) if g.requires_grad]
        if not used:
            return direction.new_zeros(self._prediction.numel())
        outputs, weights = zip(*used, strict=True)
        with _explain_double_backward():
            (product,) = torch.autograd.grad(
                outputs, cotangent, weights, retain_graph=True, materialize_grads=True
            )
        return product.double().flatten()

    @cached_property
    def _transposed(self) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Cotangent c of zeros and Jᵀ c, with the graph from c to Jᵀ c."""
        cotangent = torch.zeros_like(self._prediction, requires_grad=True)
        with torch.enable_grad(), _explain_double_backward():
            return cotangent, self.vjp_per_parameter(cotangent, create_graph=True)


@contextmanager
def _explain_double_backward() -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:
        if out_of_memory(error):
            raise
        raise ValueError(
            "method='lanczos' differentiates the derivative of the simulator, which this one does "
            f"not allow ({str(error).splitlines()[0]}); use method='gram'"
        ) from error
