"""Kronecker factors of all layers from one captured computation and one random probe."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from hig._jacobian.capture import LayerUse
from hig._jacobian.layerwise import Layer, find_layers
from hig._kronecker.adam import accumulation_dtype
from hig._kronecker.factors import input_factor, output_factor
from hig.errors import NonFiniteError

__all__ = ["LayerFactors", "check_finite", "factors_of_layers", "random_probe", "with_leading_axis"]


@dataclass(frozen=True)
class LayerFactors:
    """Factors of one layer on one batch.

    Attributes:
        layer: weight, bias and uses.
        outputs: S, (groups, out, out).
        inputs: A, (groups, in, in); with a bias (groups, in + 1, in + 1).
        rows: number of inputs, of which A is the mean.
        partial: weight or bias if the prediction also depends on it in another way; empty if
            this was not checked.
        swapped: whether the weight is used the other way round: ``outputs`` belong to its inputs.
    """

    layer: Layer
    outputs: Tensor
    inputs: Tensor
    rows: int = 1
    partial: tuple[Tensor, ...] = ()
    swapped: bool = False


def random_probe(
    prediction: Tensor,
    seed: int,
    metric_root: Callable[[Tensor], Tensor] | None,
    place: tuple[int, int] | None = None,
) -> Tensor:
    r"""Draw random signs :math:`\epsilon`; with a metric M return :math:`M^{1/2} \epsilon`.

    Signs of one seed are the same on any device, and those of a part of a batch are those of its
    samples in the whole one; torch's generators are not used.

    Their second moment is M, so that the expected second moment of
    :math:`J^T M^{1/2} \epsilon` is :math:`J^T M J`.

    Args:
        prediction: (B, ...).
        seed: seed of the signs.
        metric_root: applies the root of the metric to a tensor of the shape of the prediction.
        place: number of the first sample in the whole batch, and samples of that; None if the
            prediction is that of the whole batch.

    Raises:
        ValueError: if the metric changes the shape.
    """
    generator = torch.Generator("cpu").manual_seed(seed)  # on the CPU: the same on every device
    first, samples = place or (0, len(prediction))
    # Not on torch's default device, which need not be that of the generator.
    signs = torch.randint(0, 2, (samples, *prediction.shape[1:]), generator=generator, device="cpu")
    probe = (2 * signs[first : first + len(prediction)] - 1).to(prediction)
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
    uses: Sequence[LayerUse], prediction: Tensor, probe: Tensor, thorough: bool = False
) -> list[LayerFactors]:
    """Compute the factors of all layers with a weight that the prediction depends on.

    The graph of the prediction is kept. If ``thorough``, the gradient of the weights is compared in
    the same pass, and ``partial`` set.

    They are moments over all positions that a weight is used at. The assignment of positions to
    samples does not matter, so that any axis may hold the samples, or none.
    """
    arranged = [with_leading_axis(use) for use in uses if not use.input.is_complex()]
    layers = [layer for layer in find_layers(arranged, 1) if layer.weight is not None]
    used = list({id(use): use for layer in layers for use in layer.uses}.values())
    if not used:
        return []
    compared = [p for layer in layers for p in layer.parameters if thorough and p.requires_grad]
    inputs: list[Any] = [use.edge for use in used]  # edges and tensors may be mixed
    gradients = torch.autograd.grad(
        prediction, inputs + compared, probe, retain_graph=True, allow_unused=True
    )
    deltas = {
        id(use): delta if delta.shape == use.output_shape else _rows(delta, use)
        for use, delta in zip(used, gradients, strict=False)
        if delta is not None
    }
    full = {id(p): g for p, g in zip(compared, gradients[len(used) :], strict=True)}
    all_factors = [_factors(layer, deltas, full, len(prediction)) for layer in layers]
    return [factors for factors in all_factors if factors is not None]


def check_finite(gradients: Mapping[Tensor, Tensor], factors: Sequence[LayerFactors]) -> None:
    """Raise unless there are gradients, and these and the factors are finite.

    Raises:
        ValueError: there is no gradient.
        NonFiniteError: one of them holds NaN or Inf.
    """
    if not gradients:
        raise ValueError(
            "the prediction depends on none of the parameters; check that the closure runs the "
            "network whose parameters the optimizer holds, and with gradients enabled"
        )
    if _squares_are_finite(
        [*gradients.values(), *(f for each in factors for f in (each.outputs, each.inputs))]
    ):
        return
    bad = [tuple(p.shape) for p, g in gradients.items() if not bool(torch.isfinite(g).all())]
    where = f" with respect to parameters of shape {bad[:6]}" if bad else ""
    raise NonFiniteError(
        f"the derivative of the prediction holds NaN or Inf (or overflows when squared){where}; "
        "parameters are unchanged; check the simulator's derivative there"
    )


def _squares_are_finite(tensors: Sequence[Tensor]) -> bool:
    by_dtype: dict[torch.dtype, list[Tensor]] = {}
    for tensor in tensors:
        by_dtype.setdefault(tensor.dtype, []).append(tensor)
    squares = [torch.stack(torch._foreach_norm(several)).square() for several in by_dtype.values()]
    return all(math.isfinite(square) for several in squares for square in several.tolist())


def with_leading_axis(use: LayerUse) -> LayerUse:
    """Return a use with a leading batch axis and a dense input."""
    if use.input.is_nested:
        rows = _joined(use.input)
        use = replace(use, input=rows, output_shape=torch.Size([len(rows), use.output_shape[-1]]))
    elif use.input.layout != torch.strided:
        use = replace(use, input=use.input.to_dense())
    elif type(use.input) is not Tensor:  # the state would become of the same subclass
        use = replace(use, input=use.input.as_subclass(Tensor))
    if use.has_batch(1):
        return use
    return replace(use, input=use.input[None], output_shape=torch.Size([1, *use.output_shape]))


def _joined(nested: Tensor) -> Tensor:
    """Concatenate the rows of all parts of a nested tensor."""
    return torch.cat([part.reshape(-1, part.shape[-1]) for part in nested.unbind()])


def _rows(delta: Tensor, use: LayerUse) -> Tensor:
    """Reshape the gradient of an output as `with_leading_axis` has reshaped its use."""
    return (_joined(delta) if delta.is_nested else delta).reshape(use.output_shape)


def _factors(
    layer: Layer, deltas: dict[int, Tensor], full: Mapping[int, Tensor | None], samples: int
) -> LayerFactors | None:
    uses = [use for use in layer.uses if id(use) in deltas]
    if not uses or layer.weight is None:
        return None
    if not all(use.has_batch(samples) for use in uses):
        samples = 1
    dtype = accumulation_dtype(layer.weight.dtype)
    # (B, groups, U, ·) with the positions of all uses concatenated along U. `output_gradients`
    # takes many cotangents, (D, B, ...): here D is 1.
    outputs = torch.cat(
        [use.output_gradients(deltas[id(use)][None], samples)[:, 0].to(dtype) for use in uses], 2
    )
    inputs = torch.cat([use.patches(samples, slice(0, samples)).to(dtype) for use in uses], 2)
    return LayerFactors(
        layer,
        output_factor(outputs),
        input_factor(inputs, bias=layer.bias is not None),
        inputs.shape[0] * inputs.shape[2],
        tuple(p for p in layer.parameters if id(p) in full and _differs(p, full, outputs, inputs)),
    )


def _differs(
    parameter: Tensor, full: Mapping[int, Tensor | None], outputs: Tensor, inputs: Tensor
) -> bool:
    """Return whether a gradient differs from the one through the captured uses."""
    # (groups, B U, ·); the gradient of the weight is the sum of δ aᵀ over all positions, that of
    # the bias the sum of δ.
    outputs, inputs = (rows.transpose(0, 1).flatten(1, 2) for rows in (outputs, inputs))
    captured = outputs.mT @ inputs if parameter.ndim > 1 else outputs.sum(1)
    gradient = full[id(parameter)]
    expected = (
        torch.zeros_like(captured)
        if gradient is None
        else gradient.reshape(captured.shape).to(captured)
    )
    # Rounding errors add up over many positions; smaller differences do not matter for factors.
    tolerance = max(1e-2, 8 * torch.finfo(parameter.dtype).eps)
    # If everything cancels, both are rounding errors of this size.
    rounding = 64 * torch.finfo(parameter.dtype).eps * outputs.norm()
    rounding = rounding * (inputs.norm() if parameter.ndim > 1 else inputs.shape[1] ** 0.5)
    allowed = tolerance * torch.maximum(captured.norm(), expected.norm()) + rounding
    return bool((captured - expected).norm() > allowed)
