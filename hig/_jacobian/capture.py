"""Capture of every use of a parameter in a linear or convolution layer."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from math import prod
from typing import Any, Self
from weakref import ReferenceType, ref

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.graph import GradientEdge, get_gradient_edge
from torch.overrides import TorchFunctionMode

from hig._jacobian.controls import controls
from hig._torch.buffers import WRITING_ARGUMENTS, may_write, written_by

__all__ = ["Capture", "Captured", "ForwardPass", "LayerUse"]

_CONVOLUTIONS = {F.conv1d: 1, F.conv2d: 2, F.conv3d: 3}
_LAYER_ARGUMENTS = ("input", "weight", "bias", "stride", "padding", "dilation", "groups")


@dataclass(frozen=True)
class LayerUse:
    """One call of a linear or convolution layer.

    Attributes:
        weight: the weight parameter if it is watched, else None.
        bias: the bias parameter if there is one and it is watched, else None.
        input: the layer's input, detached: (B, ..., in) or (B, C, *positions).
        edge: the gradient edge of the output. It outlives an in-place activation, which would
            make the output tensor stand for something else.
        output_shape: shape of the layer's output.
        convolution: None for a linear layer, else stride, padding, dilation, groups and kernel.
    """

    weight: Tensor | None
    bias: Tensor | None
    input: Tensor
    edge: GradientEdge
    output_shape: torch.Size
    convolution: "Convolution | None" = None

    @property
    def dtype(self) -> torch.dtype:
        """Precision of the output, as its input has it."""
        return self.input.dtype

    @property
    def groups(self) -> int:
        """Number of convolution groups; 1 for a linear layer."""
        return 1 if self.convolution is None else self.convolution.groups

    def has_batch(self, samples: int) -> bool:
        """Return whether the leading axis can be read as ``samples`` samples."""
        if self.convolution is None:
            return self.input.ndim >= 2 and self.input.shape[0] % samples == 0
        batched = self.input.ndim == len(self.convolution.kernel) + 2
        return batched and self.input.shape[0] % samples == 0

    def patches(self, samples: int, selection: slice) -> Tensor:
        """Return the patches of the input that the weight is applied to, one per output position.

        A leading axis of ``repeats * B`` is read as B samples that use the layer ``repeats``
        times each (time steps folded into the batch): for the Jacobian of one sample these are
        further positions.

        Args:
            samples: B.
            selection: the samples wanted, b of them.

        Returns:
            (b, groups, repeats * positions, in), where ``in`` is C / groups * kernel size for a
            convolution.
        """
        inputs = self.input.unflatten(0, (samples, len(self.input) // samples))[selection]
        if self.convolution is None:
            return inputs.reshape(len(inputs), 1, -1, self.input.shape[-1])
        # Unfolding turns a convolution into a matrix product: z = W a at every position.
        windows = self.convolution.windows(inputs.flatten(0, 1))
        # (b * repeats, groups, positions, in) -> (b, groups, repeats, positions, in), so that
        # repeats and positions can be flattened into one axis of uses.
        windows = windows.unflatten(0, inputs.shape[:2]).movedim(1, 2)
        return windows.flatten(2, 3)

    def patch_pieces(self, samples: int, selection: slice, most: int) -> Iterator[Tensor]:
        """Yield the same patches in float64, some positions at a time.

        Patches of a large field leave the cache before a product reads them.

        Args:
            samples: B.
            selection: the samples wanted, b of them.
            most: positions in a piece; of a convolution at least those along all axes but one.

        Yields:
            (b, groups, u, in), u positions after those of the last piece, on the axis of
            :meth:`patches`. Of a convolution they are transposed in memory.
        """
        inputs = self.input.unflatten(0, (samples, len(self.input) // samples))[selection]
        if self.convolution is None:
            vectors = inputs.reshape(len(inputs), 1, -1, self.input.shape[-1])
            yield from (piece.double() for piece in vectors.split(most, 2))
            return
        views = self.convolution.views(inputs.flatten(0, 1)).unflatten(0, inputs.shape[:2])
        axes = len(self.convolution.kernel)
        positions = views.shape[-axes:]
        pieces: Iterable[Tensor]
        if inputs.shape[1] * prod(positions) <= most:
            pieces = [views.movedim(1, -axes - 1)]
        else:
            size = max(1, most // max(1, prod(positions[1:])))
            of_repeats = (repeat.split(size, -axes) for repeat in views.unbind(1))
            pieces = (piece.unsqueeze(-axes - 1) for parts in of_repeats for piece in parts)
        for piece in pieces:  # (b, groups, channels, *kernel, repeats, *positions)
            values = piece.new_empty(piece.shape, dtype=torch.float64).copy_(piece)
            yield values.flatten(-axes - 1).flatten(2, -2).mT

    def patch_squares(self, samples: int, selection: slice) -> Tensor:
        """Return the squared norms (b, groups, positions) of the patches, in float64.

        Squares are summed over channels before they are unfolded: the same numbers from windows
        that are smaller by the number of channels.
        """
        inputs = self.input.unflatten(0, (samples, len(self.input) // samples))[selection]
        squares = inputs.double().square()
        if self.convolution is None:
            return squares.sum(-1).reshape(len(inputs), 1, -1)
        squares = squares.flatten(0, 1)  # (b * repeats, C, *positions)
        summed = squares.unflatten(1, (self.groups, -1)).sum(2)
        windows = self.convolution.windows(summed).sum(3)  # (b * repeats, groups, positions)
        return windows.unflatten(0, inputs.shape[:2]).movedim(1, 2).flatten(2, 3)

    def output_gradients(self, gradients: Tensor, samples: int) -> Tensor:
        """Arrange gradients (D, *output_shape) as (B, D, groups, positions, out).

        The axes match those of :meth:`patches`: groups and positions of an output belong to the
        patches of the same index, so that δ ⊗ a needs no further indexing.
        """
        repeats = self.output_shape[0] // samples
        gradients = gradients.unflatten(1, (samples, repeats))
        if self.convolution is None:
            return gradients.flatten(2, -2).unsqueeze(2).movedim(0, 1)
        gradients = gradients.flatten(4).unflatten(3, (self.groups, -1))
        # (D, B, repeats, groups, out, positions) -> (B, D, groups, repeats * positions, out)
        return gradients.permute(1, 0, 3, 2, 5, 4).flatten(3, 4)


@dataclass
class Captured:
    """What a capture has seen of a run.

    Attributes:
        uses: the layer uses.
        named: tensors named by :func:`hig.controls`, each with its version.
        last: the output of the last layer, with its version.
    """

    uses: list[LayerUse] = field(default_factory=list)
    named: list[tuple[Tensor, int]] = field(default_factory=list)
    last: tuple[Tensor, int] | None = None

    def controls(self) -> list[tuple[Tensor, int]]:
        """Return tensors through which alone a simulator may depend on the parameters."""
        return self.named or ([] if self.last is None else [self.last])


@dataclass(frozen=True)
class ForwardPass:
    """One run of network and simulator, to be differentiated.

    Attributes:
        uses: the captured layer calls; empty for the rows engine.
        prediction: (B, ...) of this process, with its graph; D outputs per sample.
        parameters: the parameters, all requiring gradients.
        names: their names in messages.
        controls: tensors through which alone the prediction may depend on the parameters, each
            with its version; named ones, or the output of the last layer.
        named: whether they are named.
    """

    uses: Sequence[LayerUse]
    prediction: Tensor
    parameters: Sequence[Tensor]
    names: Sequence[str]
    controls: Sequence[tuple[Tensor, int]] = ()
    named: bool = False

    @property
    def has_controls(self) -> bool:
        """Whether there may be fewer controls than outputs, or some were named."""
        size = sum(tensor.numel() for tensor, _ in self.controls)
        return self.named or 0 < size < self.prediction.numel()


@dataclass(frozen=True)
class Convolution:
    """Geometry of a convolution: one entry per spatial axis."""

    kernel: tuple[int, ...]
    stride: tuple[int, ...]
    padding: tuple[tuple[int, int], ...]
    dilation: tuple[int, ...]
    groups: int

    def views(self, inputs: Tensor) -> Tensor:
        """Unfold (N, C, *positions) to (N, groups, C / groups, *kernel, *output positions).

        All but the padding is a view.
        """
        axes = len(self.kernel)
        # ``F.pad`` takes the last axis first.
        flat_padding = [side for pair in reversed(self.padding) for side in pair]
        views = F.pad(inputs, flat_padding) if any(flat_padding) else inputs
        geometry = zip(self.kernel, self.stride, self.dilation, strict=True)
        for axis, (size, step, gap) in enumerate(geometry):
            # Each axis of positions leaves its window as a new last axis, thinned by the dilation.
            views = views.unfold(2 + axis, (size - 1) * gap + 1, step)[..., ::gap]
        # The channels of a group go next to the kernel, in the order of the weight
        # (out, C / groups, *kernel), so that both flatten alike.
        views = views.unflatten(1, (self.groups, -1))
        return views.movedim(tuple(range(3, 3 + axes)), tuple(range(-axes, 0)))

    def windows(self, inputs: Tensor) -> Tensor:
        """Unfold (N, C, *positions) to (N, groups, output positions, C / groups * kernel)."""
        axes = len(self.kernel)
        views = self.views(inputs)
        windows = views.movedim(tuple(range(-axes, 0)), tuple(range(2, 2 + axes)))
        return windows.flatten(2 + axes).flatten(2, 1 + axes)


class Capture(TorchFunctionMode):
    """Record the layer uses of the watched parameters while the context is open.

    The mode sees every ``linear`` and ``conv1d/2d/3d`` call, without hooks or a module tree. Fused
    kernels (recurrent layers, attention) and other functions are not seen: the record is therefore
    checked afterwards against autograd itself. Code under ``torch.compile`` runs eagerly: compiled
    code would hide the layers, and its backward passes run neither in batches nor twice.

    Args:
        parameters: the tensors to watch, by identity.

    Attributes:
        captured: the recorded layer uses, and the controls.
    """

    def __init__(self, parameters: Iterable[Tensor]):
        super().__init__()
        self._watched = {id(parameter) for parameter in parameters}
        self.captured = Captured()
        self._written: dict[int, ReferenceType[Tensor]] = {}
        self._eager: list[AbstractContextManager[None]] = []  # one per nested use of the context

    def __enter__(self) -> Self:
        """Start to watch."""
        self._eager.append(torch.compiler.set_stance("force_eager"))
        self._eager[-1].__enter__()
        super().__enter__()
        return self

    def __exit__(self, *exception: Any) -> None:
        """Stop to watch."""
        super().__exit__(*exception)
        self._eager.pop().__exit__(*exception)

    @property
    def uses(self) -> list[LayerUse]:
        """The recorded layer uses."""
        return self.captured.uses

    @property
    def has_written(self) -> bool:
        """Return whether a tensor without a graph was written to and still exists."""
        return any(written() is not None for written in self._written.values())

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        """Run ``func`` and note it if it is a layer with a watched parameter."""
        if func is F.linear or func in _CONVOLUTIONS:
            for overriding in types:  # tensor-like objects: the layer call that they make counts
                with self:
                    output = overriding.__torch_function__(func, types, args, kwargs or {})  # type: ignore[attr-defined]
                if output is not NotImplemented:
                    return output
            output = func(*args, **(kwargs or {}))
            self._note(
                func, dict(zip(_LAYER_ARGUMENTS, args, strict=False)) | (kwargs or {}), output
            )
            return output
        if func is controls:
            values: Tensor = func(*args, **(kwargs or {}))
            if values.requires_grad and not _in_transform(values):
                self.captured.named.append((values, values._version))
            return values
        writes = may_write(func) in ("first", "any")
        if writes or (kwargs and not WRITING_ARGUMENTS.isdisjoint(kwargs)):
            with torch._C.DisableTorchFunctionSubclass():
                for tensor in written_by(func, args, kwargs):
                    if id(tensor) not in self._watched:
                        self._written[id(tensor)] = ref(tensor)
        return func(*args, **(kwargs or {}))

    def _note(self, func: Callable[..., Any], arguments: dict[str, Any], output: Tensor) -> None:
        weight, bias = arguments["weight"], arguments.get("bias")
        if func is F.linear and weight.ndim != 2:
            return  # a single output without an axis of its own
        weight_watched = id(weight) in self._watched
        # ``linear`` also broadcasts a bias of another shape; only a vector has the usual columns.
        plain_bias = bias is not None and bias.shape == weight.shape[:1]
        bias_watched = plain_bias and id(bias) in self._watched
        inputs = arguments["input"]
        if (
            not (weight_watched or bias_watched)
            or not output.requires_grad
            or _in_transform(output)
        ):
            return
        self.captured.last = output, output._version
        self.uses.append(
            LayerUse(
                weight=weight if weight_watched else None,
                bias=bias if bias_watched else None,
                input=inputs.detach(),
                edge=get_gradient_edge(output),
                output_shape=output.shape,
                convolution=_geometry(func, arguments) if func in _CONVOLUTIONS else None,
            )
        )


def _in_transform(tensor: Tensor) -> bool:
    # Inside vmap, grad and the like a tensor is a wrapper whose graph ends with the transform.
    return torch._C._functorch.is_functorch_wrapped_tensor(tensor)


def _geometry(func: Callable[..., Any], arguments: dict[str, Any]) -> Convolution:
    axes = _CONVOLUTIONS[func]
    kernel = tuple(arguments["weight"].shape[2:])
    stride = _per_axis(arguments.get("stride", 1), axes)
    dilation = _per_axis(arguments.get("dilation", 1), axes)
    padding = arguments.get("padding", 0)
    if padding == "valid":
        padding = 0
    if padding == "same":
        total = [gap * (size - 1) for gap, size in zip(dilation, kernel, strict=True)]
        sides = tuple((extent // 2, extent - extent // 2) for extent in total)
    else:
        sides = tuple((side, side) for side in _per_axis(padding, axes))
    return Convolution(kernel, stride, sides, dilation, arguments.get("groups", 1))


def _per_axis(value: int | Sequence[int], axes: int) -> tuple[int, ...]:
    if isinstance(value, int):
        return (value,) * axes
    return tuple(value) * (axes if len(value) == 1 else 1)


def weight_matrix_shape(use: LayerUse) -> tuple[int, int, int]:
    """Return (groups, out per group, in per group): the weight of a use as a stack of matrices."""
    out = use.output_shape[-1] if use.convolution is None else use.output_shape[1]
    if use.convolution is None:
        return 1, out, use.input.shape[-1]
    channels = use.input.shape[1] // use.groups
    return use.groups, out // use.groups, channels * prod(use.convolution.kernel)
