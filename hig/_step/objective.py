"""What was seen while a closure ran, on this rank and of the whole batch."""

from collections.abc import Sequence
from dataclasses import dataclass
from zlib import crc32

import torch
from torch import Tensor

from hig._jacobian.batch_split import Split
from hig._jacobian.capture import LayerUse
from hig._spectral.filters import SpectralFilter
from hig._torch.deferred_checks import Checks
from hig._torch.ranks import Ranks

__all__ = ["Computation", "checksum", "digest", "digest_of_filter", "whole_batch"]


@dataclass(frozen=True)
class Computation:
    """What was seen while a closure ran.

    Attributes:
        uses: the captured layer uses.
        loss: the loss of the whole batch, a scalar.
        prediction: (B, ...) of this rank, with its graph.
        gradient: gradient of the loss with respect to the prediction, same shape.
        flat_gradient: that of the whole batch, g, (n,) float64, without a graph.
        parameters: the parameters of the step.
        names: what to call them in messages.
        split: the samples of each rank.
        weight: what the loss of this rank counts in that of the whole batch.
        checks: conditions on loss, prediction and gradient that are still to be settled.
    """

    uses: Sequence[LayerUse]
    loss: Tensor
    prediction: Tensor
    gradient: Tensor
    flat_gradient: Tensor
    parameters: Sequence[Tensor]
    names: Sequence[str]
    split: Split
    weight: float
    checks: Checks


def whole_batch(
    uses: Sequence[LayerUse],
    loss: Tensor,
    prediction: Tensor,
    gradient: Tensor,
    parameters: Sequence[Tensor],
    names: Sequence[str],
    ranks: Ranks,
    reduction: str,
    checks: Checks,
    settings: int = 0,
) -> Computation:
    """Make the losses of all ranks one loss.

    Args:
        uses: the layer uses captured on this rank.
        loss: the loss of this rank, checked.
        prediction: (B, ...) of this rank, checked.
        gradient: gradient of this rank's loss in its prediction.
        parameters: the parameters of the step.
        names: what to call them in messages.
        ranks: the ranks of the step.
        reduction: "mean" or "sum", see :meth:`Split.weight`.
        checks: conditions of this rank that are still to be settled.
        settings: digest of what decides on the step beside the parameters.

    Raises:
        ValueError: the ranks differ in what must be equal.
    """
    outputs = prediction[0].numel()
    if ranks.size > 1:
        ranks.agree_on(_facts(outputs, prediction.dtype, parameters, settings))
    split = Split(ranks, ranks.whole_numbers(len(prediction)), outputs)
    weight = split.weight(reduction)
    if ranks.size > 1:
        with torch.enable_grad():  # curvature may be asked for
            gradient = weight * gradient
        loss = torch.full_like(
            loss, ranks.sum_of(weight * float(loss.detach())), requires_grad=False
        )
    flat = split.joined(gradient.detach().double().flatten())
    return Computation(
        uses, loss, prediction, gradient, flat, parameters, names, split, weight, checks
    )


def digest(*facts: object) -> int:
    """A number that differs where the printed facts differ."""
    return crc32(repr(facts).encode())


def digest_of_filter(filter: SpectralFilter) -> int:
    """A digest of what a filter does; what it prints may be an address."""
    probes = torch.logspace(-6, 6, 5, dtype=torch.float64, device="cpu")
    return digest(
        getattr(filter, "auto", False),
        filter.rcond,
        filter.needs_small_values,
        filter.gain(probes).tolist(),
    )


def _facts(
    outputs: int, dtype: torch.dtype, parameters: Sequence[Tensor], settings: int
) -> dict[str, tuple[int, str]]:
    shapes = [(tuple(parameter.shape), parameter.dtype) for parameter in parameters]
    model = "build the same network on every rank"
    return {
        "the number of parameters": (sum(parameter.numel() for parameter in parameters), model),
        "the checksum of shapes and dtypes of the parameters": (digest(shapes), model),
        "the checksum of the values of the parameters": (
            checksum(parameters),
            "start every rank from the same seed, or hand out those of one rank: "
            "torch.distributed.broadcast(parameter.data, 0) for each",
        ),
        "the number of outputs per sample": (
            outputs,
            "ranks may have different numbers of samples, not of outputs for each",
        ),
        "the checksum of the prediction's dtype": (digest(dtype), "compute in one dtype"),
        "the checksum of learning rates, filter and other settings": (
            settings,
            "make the optimizer with the same arguments on every rank, and step schedulers on all",
        ),
    }


_BITS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


def checksum(tensors: Sequence[Tensor]) -> int:
    """A sum over the bits of all values, which costs one pass over them; 0 for no tensor."""
    sums = [
        (index + 1) * tensor.detach().contiguous().view(_BITS[tensor.element_size()]).sum()
        for index, tensor in enumerate(tensors)
    ]
    return int(torch.stack(sums).sum()) if sums else 0
