"""Engine ``layerwise``: D backward passes to the layer outputs instead of B * D to the weights.

Samples are assumed to be independent, so one pass with a cotangent for one output of *all* samples
gives that row of every sample. The assumption is checked against autograd afterwards, see
:func:`hig._jacobian.engine.build_jacobian`.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from hig._jacobian.capture import LayerUse, weight_matrix_shape
from hig._jacobian.factored_block import FactoredBlock, columns_are_smaller
from hig._jacobian.formed_block import Factors, FormedBlock
from hig._jacobian.graph_layers import GraphLayer
from hig._jacobian.graph_uses import GraphUse
from hig._jacobian.pulled_block import PulledBlock
from hig._jacobian.rearranged_block import RearrangedBlock
from hig._torch import memory
from hig._torch.autograd_graph import real_size
from hig._torch.batched_vjp import BatchedVJP, output_cotangents

__all__ = ["Layer", "LayerPatches", "factor_bytes", "find_layers", "layer_blocks", "of_each_sample"]


# Columns are formed from the factors of so many backward passes at a time.
FACTOR_BYTES = 64 * 2**20


@dataclass(frozen=True)
class Layer:
    """Layer: all uses of one weight and / or one bias.

    Attributes:
        weight: the weight, or None.
        bias: the bias, or None; with a weight only if both have the same uses.
        uses: the captured calls.
    """

    weight: Tensor | None
    bias: Tensor | None
    uses: tuple[LayerUse, ...]

    @property
    def parameters(self) -> list[Tensor]:
        """Weight and bias, without a None."""
        return [parameter for parameter in (self.weight, self.bias) if parameter is not None]

    @property
    def structure(self) -> tuple[object, ...]:
        """Geometry that distinguishes layers of the same parameters, whatever the batch."""
        return tuple((use.convolution, use.input.ndim, use.input.dtype) for use in self.uses)

    @property
    def must_be_formed(self) -> bool:
        """Whether the columns are a sum that has no factors of its own."""
        return False

    def numbers(self, outputs: int) -> int:
        """Return the numbers that the factors consist of, with the gradients of D outputs."""
        numbers = outputs * sum(use.output_shape.numel() for use in self.uses)
        if self.weight is not None:
            numbers += sum(use.input.numel() for use in self.uses)
        return numbers

    def factors(self, gradients: Mapping[int, Tensor], samples: int) -> list[Factors]:
        """Return the factors, from the gradients of the uses."""
        return [_block(self, gradients, samples)]


AnyLayer = Layer | GraphLayer
Columns = FactoredBlock | RearrangedBlock | FormedBlock


class LayerPatches:
    """Inputs of a layer, unfolded into patches on demand.

    Args:
        uses: the calls.
        samples: B.
    """

    def __init__(self, uses: Sequence[LayerUse], samples: int):
        self._uses, self._samples = uses, samples

    def __call__(self, samples: slice) -> Tensor:
        """Return the patches (b, groups, U, in) of a slice of samples."""
        # All calls of a layer are uses of one weight: they follow one another on the axis U, in
        # the order in which ``_block`` concatenates the deltas.
        if self._are_vectors:
            return torch.stack([use.input[samples] for use in self._uses], 1).unsqueeze(1)
        patches = [use.patches(self._samples, samples) for use in self._uses]
        return torch.cat(patches, dim=2) if len(patches) > 1 else patches[0]

    def pieces(self, samples: slice, most: int) -> Iterator[tuple[slice, Tensor]]:
        """Yield slices of about ``most`` uses, with their patches (b, groups, u, in), float64."""
        start = 0
        for patches in self._pieces(samples, most):
            stop = start + patches.shape[2]
            yield slice(start, stop), patches
            start = stop

    def _pieces(self, samples: slice, most: int) -> Iterator[Tensor]:
        if self._are_vectors:
            yield from (piece.double() for piece in self(samples).split(most, 2))
            return
        for use in self._uses:
            yield from use.patch_pieces(self._samples, samples, most)

    def squares(self, samples: slice) -> Tensor:
        """Return the squared norms (b, groups, U) of these patches, float64."""
        if self._are_vectors:
            return self(samples).double().square().sum(-1)
        squares = [use.patch_squares(self._samples, samples) for use in self._uses]
        return torch.cat(squares, dim=2) if len(squares) > 1 else squares[0]

    @property
    def _are_vectors(self) -> bool:
        """Whether each call has one vector per sample: then one operation arranges all of them."""
        return _have_one_vector_each(self._uses, self._samples)

    @property
    def dtypes(self) -> set[torch.dtype]:
        """Precisions of the layer inputs."""
        return {use.input.dtype for use in self._uses}

    def inputs(self) -> list[Tensor]:
        """Return the layer inputs, which are smaller than the patches: per use (B, ...)."""
        return [use.input.unflatten(0, (self._samples, -1)) for use in self._uses]

    def of(self, inputs: Sequence[Tensor]) -> "LayerPatches":
        """Return the patches of other samples, from the ``inputs`` of these."""
        uses = [
            replace(use, input=samples_first.flatten(0, 1))
            for use, samples_first in zip(self._uses, inputs, strict=True)
        ]
        return LayerPatches(uses, len(inputs[0]))


def find_layers(uses: Sequence[LayerUse], samples: int) -> list[Layer]:
    """Group captured uses by parameter, without the layers that the engine cannot express.

    These are parameters used without a batch axis, in layers of different geometry, or both as a
    weight and as a bias: they take the rows engine.
    """
    weights = _uses_by_parameter(uses, "weight")
    biases = _uses_by_parameter(uses, "bias")
    both_roles = weights.keys() & biases.keys()
    layers, joined = [], set()
    for key, (weight, weight_uses) in weights.items():
        if key in both_roles:
            continue
        bias = uses[weight_uses[0]].bias
        if bias is not None and biases[id(bias)][1] == weight_uses and id(bias) not in both_roles:
            joined.add(id(bias))
        else:
            bias = None
        layers.append(Layer(weight, bias, tuple(uses[index] for index in weight_uses)))
    for key, (bias, bias_uses) in biases.items():
        if key not in joined and key not in both_roles:
            layers.append(Layer(None, bias, tuple(uses[index] for index in bias_uses)))
    return [layer for layer in layers if _is_expressible(layer, samples)]


def factor_bytes(layers: Sequence[AnyLayer], prediction: Tensor) -> int:
    """Return the bytes of the gradients of all layer outputs, D times the outputs."""
    uses = {id(use): use for layer in layers for use in layer.uses}.values()
    numbers = sum(use.output_shape.numel() for use in uses) * prediction[0].numel()
    return numbers * prediction.element_size()


def layer_blocks(
    layers: Sequence[AnyLayer],
    prediction: Tensor,
    backward: BatchedVJP,
    cotangents: Tensor | None = None,
) -> list[Columns]:
    """Return the Jacobian columns of each layer, from D backward passes.

    They are held as two factors, or formed while the passes run where that takes less memory: in
    layers that use few weights in many places, such as convolutions over fields.

    Args:
        layers: from :func:`find_layers` and :class:`hig._jacobian.graph_layers.FoundLayers`.
        prediction: (B, ...), with a graph; D outputs per sample.
        backward: runs the passes.
        cotangents: other passes than one for each output, (passes, B, ...), whose gradients are
            needed together.
    """
    if not layers:
        return []
    samples, outputs = len(prediction), prediction[0].numel()
    if cotangents is not None:
        return _of_all_passes(layers, prediction, backward, cotangents)
    formed = [_columns_are_smaller(layer, prediction) for layer in layers]
    _check_room(layers, formed, prediction)
    held = _HeldGradients(layer.uses for layer, f in zip(layers, formed, strict=True) if not f)
    blocks: list[FormedBlock | None] = [None] * len(layers)
    uses = list({id(use): use for layer in layers for use in layer.uses}.values())
    batches = _output_gradients(uses, prediction, backward)
    # Patches are unfolded once for all passes in a batch.
    for passes, gradients in _joined(batches, FACTOR_BYTES) if any(formed) else batches:
        held.add(passes, outputs, gradients)
        for index, layer in enumerate(layers):
            if formed[index]:
                factors = layer.factors(gradients, samples)
                block = blocks[index] or FormedBlock(samples, outputs, factors[0])
                block.add(passes, *factors)
                blocks[index] = block
    return [
        block or _own_factors(layer, held.gradients, samples)
        for layer, block in zip(layers, blocks, strict=True)
    ]


def _own_factors(
    layer: AnyLayer, gradients: Mapping[int, Tensor], samples: int
) -> FactoredBlock | RearrangedBlock:
    """Return the factors of a layer whose columns need not be formed."""
    (factors,) = layer.factors(gradients, samples)
    assert not isinstance(factors, PulledBlock)
    return factors


def _of_all_passes(
    layers: Sequence[AnyLayer], prediction: Tensor, backward: BatchedVJP, cotangents: Tensor
) -> list[Columns]:
    """Return the columns of layers whose samples are told apart by all passes together."""
    samples, outputs = len(prediction), prediction[0].numel()
    uses = list({id(use): use for layer in layers for use in layer.uses}.values())
    held = _HeldGradients([uses])
    for passes, gradients in _output_gradients(uses, prediction, backward, cotangents):
        held.add(passes, len(cotangents), gradients)
    blocks: list[Columns] = []
    for layer in layers:
        if isinstance(layer, GraphLayer) and layer.by_outputs:
            factors = layer.factors(held.gradients, samples)
            turned = FormedBlock(outputs, samples, factors[0])
            turned.add(slice(0, samples), *factors)
            blocks.append(turned.with_samples_second())
        elif layer.must_be_formed or outputs > 1:
            factors = layer.factors(held.gradients, samples)
            formed = FormedBlock(samples * outputs, 1, factors[0])
            formed.add(slice(0, 1), *factors)
            blocks.append(formed.with_outputs(outputs))
        else:
            blocks.append(_own_factors(layer, held.gradients, samples))
    return blocks


def of_each_sample(prediction: Tensor) -> Tensor:
    """Return cotangents (B, B, ...), each selecting all outputs of one sample."""
    eye = torch.eye(len(prediction), dtype=prediction.dtype, device=prediction.device)
    return eye.view(*eye.shape, *(1,) * (prediction.ndim - 1)).expand(-1, *prediction.shape)


def _check_room(layers: Sequence[AnyLayer], formed: Sequence[bool], prediction: Tensor) -> None:
    """Raise if the factors and columns of the layers do not fit into memory."""
    of_layers = list(zip(layers, formed, strict=True))
    held = factor_bytes([layer for layer, meanwhile in of_layers if not meanwhile], prediction)
    columns = sum(
        real_size(p) for layer, meanwhile in of_layers if meanwhile for p in layer.parameters
    )
    needed = held + 8 * prediction.numel() * columns
    if needed < memory.CHECKED_BYTES:
        return
    memory.check_room(
        needed,
        prediction,
        f"factors of the layers for a batch of {len(prediction)} samples with "
        f"{prediction[0].numel()} outputs each",
        "take a smaller batch, or method='lanczos', which multiplies with a large Jacobian without "
        "holding it; another chunk, the number of backward passes at a time, does not change it",
    )


class _HeldGradients:
    """Gradients (D, *output_shape) of layer uses, assembled from batches of passes.

    Args:
        uses: the uses of each layer whose gradients are wanted.

    Attributes:
        gradients: by the identity of the use.
    """

    def __init__(self, uses: Iterable[Sequence[LayerUse | GraphUse]]):
        self._wanted = {id(use) for of_layer in uses for use in of_layer}
        self.gradients: dict[int, Tensor] = {}

    def add(self, passes: slice, outputs: int, gradients: Mapping[int, Tensor]) -> None:
        """Store the gradients of some of the outputs."""
        for key in self._wanted:
            gradient = gradients[key]
            if len(gradient) == outputs:
                self.gradients[key] = gradient
                continue
            if key not in self.gradients:
                self.gradients[key] = gradient.new_empty((outputs, *gradient.shape[1:]))
            self.gradients[key][passes] = gradient


def _columns_are_smaller(layer: AnyLayer, prediction: Tensor) -> bool:
    """Return whether the columns of a layer in float64 are smaller than its factors."""
    if layer.must_be_formed:
        return True
    samples, outputs = len(prediction), prediction[0].numel()
    columns = sum(map(real_size, layer.parameters))
    held = layer.numbers(outputs) * prediction.element_size() // samples
    return columns_are_smaller(held, outputs, columns)


def _uses_by_parameter(uses: Sequence[LayerUse], role: str) -> dict[int, tuple[Tensor, list[int]]]:
    uses_of: dict[int, tuple[Tensor, list[int]]] = {}
    for index, use in enumerate(uses):
        parameter = getattr(use, role)
        if parameter is not None:
            uses_of.setdefault(id(parameter), (parameter, []))[1].append(index)
    return uses_of


def _is_expressible(layer: Layer, samples: int) -> bool:
    if any(use.input.is_complex() for use in layer.uses):
        return False
    if any(parameter.is_complex() for parameter in layer.parameters):
        return False
    if not all(use.has_batch(samples) for use in layer.uses):
        return False
    if layer.weight is None:
        return len({use.convolution is None for use in layer.uses}) == 1
    return len({(use.convolution is None, *weight_matrix_shape(use)) for use in layer.uses}) == 1


def _output_gradients(
    uses: Sequence[LayerUse | GraphUse],
    prediction: Tensor,
    backward: BatchedVJP,
    cotangents: Tensor | None = None,
) -> Iterator[tuple[slice, dict[int, Tensor]]]:
    """Yield gradients (k, *output_shape), k passes at a time, by the identity of the use."""
    edges = [use.edge for use in uses]
    size = sum(use.output_shape.numel() for use in uses) * prediction.element_size()
    if cotangents is None:
        count, of_passes = prediction[0].numel(), output_cotangents(prediction)
    else:
        given = cotangents
        count, of_passes = len(given), lambda start, stop: given[start:stop]
    batches = backward.gradients(prediction, edges, count, of_passes, size)
    for passes, gradients in batches:
        number = passes.stop - passes.start
        yield (
            passes,
            {
                id(use): prediction.new_zeros((number, *use.output_shape), dtype=use.dtype)
                if gradient is None
                else gradient
                for use, gradient in zip(uses, gradients, strict=True)
            },
        )


def _joined(
    batches: Iterator[tuple[slice, dict[int, Tensor]]], enough: int
) -> Iterator[tuple[slice, dict[int, Tensor]]]:
    """Join batches of passes until their gradients have ``enough`` bytes."""
    waiting: list[dict[int, Tensor]] = []
    first = size = 0
    for passes, gradients in batches:
        waiting.append(gradients)
        size += sum(part.numel() * part.element_size() for part in gradients.values())
        if size >= enough:
            yield slice(first, passes.stop), _concatenated(waiting)
            first, size = passes.stop, 0
        last = passes.stop
    if waiting:
        yield slice(first, last), _concatenated(waiting)


def _concatenated(waiting: list[dict[int, Tensor]]) -> dict[int, Tensor]:
    """Return the gradients of all batches of passes together; they are taken out of the list."""
    if len(waiting) == 1:
        return waiting.pop()
    keys = list(waiting[0])
    # One use after the other, so that no more than one of them is held twice.
    joined = {key: torch.cat([gradients.pop(key) for gradients in waiting]) for key in keys}
    waiting.clear()
    return joined


def _block(layer: Layer, deltas: Mapping[int, Tensor], samples: int) -> FactoredBlock:
    patches = None if layer.weight is None else LayerPatches(layer.uses, samples)
    fan_in = weight_matrix_shape(layer.uses[0])[2]
    if _have_one_vector_each(layer.uses, samples):
        stacked = torch.stack([deltas[id(use)] for use in layer.uses], 2)  # (D, B, U, out)
        delta = stacked.transpose(0, 1).unsqueeze(2)
        return FactoredBlock(delta, patches, fan_in, bias=layer.bias is not None)
    parts = [use.output_gradients(deltas[id(use)], samples) for use in layer.uses]
    if layer.weight is None:
        # A bias alone has no groups, and its uses may differ in theirs: (groups, out) becomes one
        # group of all channels.
        parts = [part.movedim(2, 3).flatten(3).unsqueeze(2) for part in parts]
    delta = torch.cat(parts, dim=3) if len(parts) > 1 else parts[0]
    return FactoredBlock(delta, patches, fan_in, bias=layer.bias is not None)


def _have_one_vector_each(uses: Sequence[LayerUse], samples: int) -> bool:
    """Return whether all are calls of a linear layer on (B, in)."""
    first = uses[0]
    return len(uses) > 1 and all(
        use.convolution is None
        and use.input.shape == (samples, first.input.shape[-1])
        and use.input.dtype == first.input.dtype
        for use in uses
    )
