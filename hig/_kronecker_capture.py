"""Kronecker factors of all layers from one captured computation and one random probe."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from hig._capture import LayerUse
from hig._kronecker_factors import input_factor, output_factor
from hig._layerwise import Layer, find_layers

__all__ = ["LayerFactors", "factors_of_layers", "random_probe"]


@dataclass(frozen=True)
class LayerFactors:
    """The factors of one layer on one batch.

    Attributes:
        layer: weight, bias and uses.
        outputs: S, (groups, out, out).
        inputs: A, (groups, in, in), one more with a bias.
    """

    layer: Layer
    outputs: Tensor
    inputs: Tensor


def random_probe(
    prediction: Tensor, seed: int, metric_root: Callable[[Tensor], Tensor] | None
) -> Tensor:
    r"""Random signs :math:`\epsilon`, and :math:`M^{1/2} \epsilon` with a metric M.

    Their second moment is M, so that of :math:`J^T M^{1/2} \epsilon` is :math:`J^T M J` on
    average.

    Args:
        prediction: (B, ...); shape, dtype and device count.
        seed: decides the signs, on any device; torch's own generators are left alone.
        metric_root: applies the symmetric root of M; None for the identity.

    Raises:
        ValueError: if the metric changes the shape.
    """
    generator = torch.Generator("cpu").manual_seed(seed)  # on the CPU: the same on every device
    signs = torch.randint(0, 2, prediction.shape, generator=generator, device="cpu")
    probe = (2 * signs - 1).to(prediction)
    if metric_root is None:
        return probe
    probe = metric_root(probe)
    if probe.shape != prediction.shape:
        raise ValueError(
            f"metric_root must keep the shape of the prediction {tuple(prediction.shape)}, got "
            f"{tuple(probe.shape)}"
        )
    return probe


def factors_of_layers(
    uses: Sequence[LayerUse], prediction: Tensor, probe: Tensor
) -> list[LayerFactors]:
    """The factors of all layers with a weight that the prediction depends on.

    Args:
        uses: the captured layer uses.
        prediction: (B, ...), with its graph, which is kept.
        probe: what is propagated back, same shape.
    """
    layers = [layer for layer in find_layers(uses, len(prediction)) if layer.weight is not None]
    used = list({id(use): use for layer in layers for use in layer.uses}.values())
    if not used:
        return []
    gradients = torch.autograd.grad(
        prediction, [use.edge for use in used], probe, retain_graph=True, allow_unused=True
    )
    pairs = zip(used, gradients, strict=True)
    deltas = {id(use): delta for use, delta in pairs if delta is not None}
    found = [_factors(layer, deltas, len(prediction)) for layer in layers]
    return [factors for factors in found if factors is not None]


def _factors(layer: Layer, deltas: dict[int, Tensor], samples: int) -> LayerFactors | None:
    uses = [use for use in layer.uses if id(use) in deltas]
    if not uses:
        return None
    # The positions of all uses side by side: (B, groups, U, ·).
    outputs = [use.output_gradients(deltas[id(use)][None], samples)[:, 0] for use in uses]
    inputs = [use.patches(samples, slice(0, samples)) for use in uses]
    return LayerFactors(
        layer,
        output_factor(torch.cat(outputs, 2)),
        input_factor(torch.cat(inputs, 2), bias=layer.bias is not None),
    )
