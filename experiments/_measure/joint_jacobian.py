"""The exact Jacobian as steps obtain it, alone: no decomposition, no step."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from hig._jacobian.capture import Capture, ForwardPass
from hig._jacobian.engine import EngineResult, build_jacobian
from hig._jacobian.exactness import ExactnessMemory
from hig._jacobian.graph_products import product_kinds
from hig._torch.autograd_graph import real_size
from hig._torch.batched_vjp import BatchedVJP

__all__ = ["in_order", "obtain", "product_kinds"]


def obtain(
    network: nn.Module, predict: Callable[[], Tensor], engine: str
) -> Callable[[], EngineResult]:
    """Return a function that obtains J of a network anew, and remembers what steps remember.

    Args:
        network: the network.
        predict: returns its prediction (B, ...).
        engine: "auto", "layerwise" or "rows".
    """
    names, parameters = zip(*network.named_parameters(), strict=True)
    memory, backward = ExactnessMemory(), BatchedVJP()

    def found() -> EngineResult:
        with Capture(parameters) as capture:
            prediction = predict()
        forward = ForwardPass(capture.uses, prediction, parameters, names)
        with torch.no_grad():
            return build_jacobian(forward, engine, backward, memory)

    return found


def in_order(network: nn.Module, found: EngineResult) -> Tensor:
    """Return J (n, P) with the columns of all parameters in order, zeros where one is not used."""
    sizes = [real_size(parameter) for parameter in network.parameters()]
    with torch.no_grad():
        matrix = found.jacobian.dense()
        ordered = matrix.new_zeros((len(matrix), sum(sizes)))
        places = ordered.split(sizes, 1)
        parts = matrix.split([sizes[index] for index in found.order], 1)
        for index, part in zip(found.order, parts, strict=True):
            places[index].copy_(part)
    return ordered
