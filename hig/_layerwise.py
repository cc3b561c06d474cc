"""The ``layerwise`` engine: D backward passes to the layer outputs instead of B * D to the weights.

Samples are taken to be independent, so one pass with a cotangent for one output of *all* samples
gives that row of every sample. Whether this was true is checked against autograd afterwards, see
:func:`hig._engine.build_jacobian`.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from hig._backward import Backward, output_cotangents
from hig._capture import LayerUse, weight_matrix_shape
from hig._factored_block import FactoredBlock

__all__ = ["Layer", "LayerPatches", "factor_bytes", "find_layers", "layer_blocks"]


@dataclass(frozen=True)
class Layer:
    """All uses of one weight and / or one bias.

    Attributes:
        weight: the weight, or None.
        bias: the bias, or None; with a weight only if it is used where the weight is.
        uses: the captured calls.
    """

    weight: Tensor | None
    bias: Tensor | None
    uses: tuple[LayerUse, ...]

    @property
    def parameters(self) -> list[Tensor]:
        """Weight, then bias, whichever there are."""
        return [parameter for parameter in (self.weight, self.bias) if parameter is not None]

    @property
    def structure(self) -> tuple[object, ...]:
        """What tells it from other layers of the same parameters, whatever the batch."""
        return tuple((use.convolution, use.input.ndim, use.input.dtype) for use in self.uses)


class LayerPatches:
    """What the weight of a layer was multiplied with, unfolded when it is asked for.

    Args:
        uses: the calls.
        samples: B.
    """

    def __init__(self, uses: Sequence[LayerUse], samples: int):
        self._uses, self._samples = uses, samples

    def __call__(self, samples: slice) -> Tensor:
        """Patches (b, groups, U, in) of a slice of samples."""
        found = [use.patches(self._samples, samples) for use in self._uses]
        return torch.cat(found, dim=2) if len(found) > 1 else found[0]

    def squares(self, samples: slice) -> Tensor:
        """Squared norms (b, groups, U) of the patches of a slice of samples, float64."""
        found = [use.patch_squares(self._samples, samples) for use in self._uses]
        return torch.cat(found, dim=2) if len(found) > 1 else found[0]

    @property
    def dtypes(self) -> set[torch.dtype]:
        """Their precisions."""
        return {use.input.dtype for use in self._uses}

    def inputs(self) -> list[Tensor]:
        """What they are made of, smaller than they are: per use (B, ...)."""
        return [use.input.unflatten(0, (self._samples, -1)) for use in self._uses]

    def of(self, inputs: Sequence[Tensor]) -> "LayerPatches":
        """The patches of other samples, from what ``inputs`` of theirs gave."""
        uses = [
            replace(use, input=given.flatten(0, 1))
            for use, given in zip(self._uses, inputs, strict=True)
        ]
        return LayerPatches(uses, len(inputs[0]))


def find_layers(uses: Sequence[LayerUse], samples: int) -> list[Layer]:
    """Group captured uses by parameter; leave out what the engine cannot express.

    Left out are parameters used without a batch axis, in layers of different geometry, or both
    as a weight and as a bias: they take the other route.
    """
    weights = _uses_by_parameter(uses, "weight")
    biases = _uses_by_parameter(uses, "bias")
    both_roles = weights.keys() & biases.keys()
    layers, joined = [], set()
    for key, (weight, of_weight) in weights.items():
        if key in both_roles:
            continue
        bias = uses[of_weight[0]].bias
        if bias is not None and biases[id(bias)][1] == of_weight and id(bias) not in both_roles:
            joined.add(id(bias))
        else:
            bias = None
        layers.append(Layer(weight, bias, tuple(uses[index] for index in of_weight)))
    for key, (bias, of_bias) in biases.items():
        if key not in joined and key not in both_roles:
            layers.append(Layer(None, bias, tuple(uses[index] for index in of_bias)))
    return [layer for layer in layers if _expressible(layer, samples)]


def factor_bytes(layers: Sequence[Layer], prediction: Tensor) -> int:
    """Size of the gradients of all layer outputs, D times the outputs."""
    uses = {id(use): use for layer in layers for use in layer.uses}.values()
    numbers = sum(use.output_shape.numel() for use in uses) * prediction[0].numel()
    return numbers * prediction.element_size()


def layer_blocks(
    layers: Sequence[Layer], prediction: Tensor, backward: Backward
) -> list[FactoredBlock]:
    """The Jacobian columns of each layer as two factors, from D backward passes.

    Args:
        layers: from :func:`find_layers`.
        prediction: (B, ...), with a graph; D outputs per sample.
        backward: runs the passes.
    """
    if not layers:
        return []
    samples = len(prediction)
    uses = list({id(use): use for layer in layers for use in layer.uses}.values())
    deltas = dict(zip(map(id, uses), _output_gradients(uses, prediction, backward), strict=True))
    return [_block(layer, deltas, samples) for layer in layers]


def _uses_by_parameter(uses: Sequence[LayerUse], role: str) -> dict[int, tuple[Tensor, list[int]]]:
    found: dict[int, tuple[Tensor, list[int]]] = {}
    for index, use in enumerate(uses):
        parameter = getattr(use, role)
        if parameter is not None:
            found.setdefault(id(parameter), (parameter, []))[1].append(index)
    return found


def _expressible(layer: Layer, samples: int) -> bool:
    if not all(use.has_batch(samples) for use in layer.uses):
        return False
    if layer.weight is None:
        return len({use.convolution is None for use in layer.uses}) == 1
    return len({(use.convolution is None, *weight_matrix_shape(use)) for use in layer.uses}) == 1


def _output_gradients(
    uses: Sequence[LayerUse], prediction: Tensor, backward: Backward
) -> list[Tensor]:
    """For each use the gradients (D, *output_shape) of all D outputs."""
    outputs = prediction[0].numel()
    edges = [use.edge for use in uses]
    size = sum(use.output_shape.numel() for use in uses) * prediction.element_size()
    parts = list(
        backward.gradients(prediction, edges, outputs, output_cotangents(prediction), size)
    )
    results = []
    for index, use in enumerate(uses):
        found = [own for _, gradients in parts if (own := gradients[index]) is not None]
        if not found:
            results.append(prediction.new_zeros((outputs, *use.output_shape)))
        else:
            results.append(torch.cat(found) if len(found) > 1 else found[0])
    return results


def _block(layer: Layer, deltas: dict[int, Tensor], samples: int) -> FactoredBlock:
    parts = [use.output_gradients(deltas[id(use)], samples) for use in layer.uses]
    if layer.weight is None:
        # A bias alone does not care for groups, and its uses may differ in them.
        parts = [part.movedim(2, 3).flatten(3).unsqueeze(2) for part in parts]
    delta = torch.cat(parts, dim=3) if len(parts) > 1 else parts[0]
    patches = None if layer.weight is None else LayerPatches(layer.uses, samples)
    fan_in = weight_matrix_shape(layer.uses[0])[2]
    return FactoredBlock(delta, patches, fan_in, bias=layer.bias is not None)
