r"""Products of a graph with a parameter as one factor, in one common form.

A product gives :math:`z_{gmo} = \sum_i a_{gmi} w_{gio}` from the other factor a and the entries w
of a parameter, for G groups with weights of their own and m places that share them. With the
gradient :math:`\delta` of z, its share of the gradient of the entry w is
:math:`\sum_m \delta_{gmo} a_{gmi}`. Matrix products, scales and shifts, normalisations,
convolutions and embeddings are such products, those inside of derivatives included.
"""

from collections.abc import Callable
from dataclasses import dataclass
from math import prod
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from hig._jacobian.capture import Convolution
from hig._torch.autograd_graph import Node
from hig.errors import described

__all__ = ["Product", "product_kinds", "product_of", "register_product"]

Operand = Callable[[Node], Tensor]
Arrange = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Product:
    """One product of a graph, in the common form; holds no tensor of the graph.

    Attributes:
        entries: entry of the flat parameter for each weight, (G, in, out), as
            :meth:`hig._jacobian.origins.Consumer.entries` has them.
        operand: takes the node, returns the other factor (G, m, in); None if that is one.
        arrange: takes gradients (k, *output shape), returns them as (k, G, m, out).
    """

    entries: Tensor
    operand: Callable[[Node], Tensor] | None
    arrange: Arrange

    @property
    def columns(self) -> Tensor:
        """Entry of the flat parameter for each column, (groups, out, in) flattened, int64.

        A complex weight has two columns, next to one another on the axis ``out``.
        """
        entries = self.entries
        if entries.is_complex():
            entries = torch.view_as_real(entries).flatten(-2)
        return entries.mT.flatten().long()

    @property
    def ones(self) -> bool:
        """Whether the other factor is one."""
        return self.operand is None

    def light(self) -> "Product":
        """Return the same without the memory of its entries: their shape and type alone."""
        nothing = torch.zeros((), dtype=self.entries.dtype, device="cpu")
        return Product(nothing.expand(self.entries.shape), self.operand, self.arrange)

    def other_factor(self, node: Node) -> Tensor:
        """Return the other factor (G, m, in) in a graph; not for a product whose factor is one."""
        assert self.operand is not None
        # Saved tensors of a subclass lack the attributes that its methods look for.
        with torch._C.DisableTorchFunctionSubclass():
            return self.operand(node).detach().as_subclass(Tensor)

    def regrouped(self) -> "Product | None":
        """Return the product with one group for each set of weights; None if they overlap.

        Weights that were repeated for several groups are used once with more places.
        """
        groups = len(self.entries)
        flat = (
            self.entries.real.flatten(1) if self.entries.is_complex() else self.entries.flatten(1)
        )
        firsts, inverse, counts = flat[:, 0].unique(return_inverse=True, return_counts=True)
        if len(firsts) == groups:
            return self
        order = inverse.argsort(stable=True)
        repeats = groups // len(firsts)
        if (counts != repeats).any():
            return None
        entries = self.entries[order].unflatten(0, (len(firsts), -1))
        if (entries != entries[:, :1]).any():
            return None

        def joined(tensor: Tensor, axis: int) -> Tensor:
            if len(firsts) > 1:
                tensor = tensor.index_select(axis, order.to(tensor.device))
            return tensor.unflatten(axis, (len(firsts), repeats)).flatten(axis + 1, axis + 2)

        operand = self.operand
        return Product(
            entries[:, 0],
            None if operand is None else lambda node: joined(operand(node), 0),
            lambda gradient: joined(self.arrange(gradient), 1),
        )

    def with_outputs(self) -> "Product":
        """Return a sum, of one group for each entry, as one group with an output for each."""
        if self.entries.shape[1:] != (1, 1):
            return self
        return Product(self.entries.view(1, 1, -1), None, lambda g: self.arrange(g).transpose(1, 3))


def product_of(node: Node, position: int, entries: Tensor) -> Product | None:
    """Return the product that a node computes with the operand at a position.

    Args:
        node: the node.
        position: number of the operand.
        entries: entry of the flat parameter at each place of the operand.

    Returns:
        None for a node that is no product of a known kind.
    """
    if not entries.numel():
        return None
    make, _ = _KINDS.get(node.name(), (None, ""))
    found = None if make is None else make(node, position, entries)
    found = None if found is None else found.regrouped()
    return found if found is None or found.operand is not None else found.with_outputs()


def _matrix_product(left: int, saved: tuple[str, str], scaled: bool) -> Callable[..., Any]:
    """Return the kind of products of two matrices, or of batches of them.

    Args:
        left: position of the left factor.
        saved: names under which the node saves left and right factor.
        scaled: whether a tensor, at position 0, and a multiple of the product are added.
    """

    def make(node: Node, position: int, entries: Tensor) -> Product | None:
        if scaled and any(isinstance(getattr(node, f"_saved_{n}"), complex) for n in _FACTORS):
            return None
        if position < left:
            return _shift(node, entries, lambda node: float(node._saved_beta))
        # (..., a, b) @ (..., b, c), of the weight one factor, of ``entries`` its entries
        first = position == left
        other = saved[1] if first else saved[0]
        weights = entries.mT if first else entries
        weights = weights if weights.ndim == 3 else weights.unsqueeze(0)

        def operand(node: Node) -> Tensor:
            factor: Tensor = getattr(node, f"_saved_{other}")
            factor = factor if factor.layout == torch.strided else factor.to_dense()
            factor = factor.mT if first else factor
            if scaled and node._saved_alpha != 1:
                factor = factor * node._saved_alpha
            return factor if factor.ndim == 3 else factor.unsqueeze(0)

        def arrange(gradient: Tensor) -> Tensor:
            gradient = gradient.mT if first else gradient
            return gradient if gradient.ndim == 4 else gradient.unsqueeze(1)

        return Product(weights, operand, arrange)

    return make


def _shift(node: Node, entries: Tensor, scale: Callable[[Node], float]) -> Product:
    """Return the product of a term that is added, ``scale`` times."""
    if scale(node) == 1:
        return _elementwise(node, entries, None)
    return _elementwise(
        node, entries, lambda node: torch.tensor(scale(node), dtype=torch.float64, device="cpu")
    )


def _matrix_vector(node: Node, position: int, entries: Tensor) -> Product:
    if position == 0:  # (out, in) @ (in,): one place

        def vector(node: Node) -> Tensor:
            return node._saved_vec.view(1, 1, -1)

        return Product(entries.mT.unsqueeze(0), vector, lambda gradient: gradient[:, None, None])
    weights = entries.view(1, -1, 1)
    return Product(
        weights, lambda node: node._saved_self.unsqueeze(0), lambda g: g[:, None, :, None]
    )


def _dot_product(node: Node, position: int, entries: Tensor) -> Product:
    other = "_saved_tensor" if position == 0 else "_saved_self"
    return Product(
        entries.view(1, -1, 1),
        lambda node: getattr(node, other).view(1, 1, -1),
        lambda gradient: gradient[:, None, None, None],
    )


def _elementwise(node: Node, entries: Tensor, factor: Operand | None) -> Product:
    """Return a product entry by entry, with broadcasting.

    Args:
        node: the node, from whose output the shape is read.
        entries: entries of the operand, of a shape that broadcasts to that of the output.
        factor: the other factor, of such a shape too; None stands for ones.
    """
    shape = torch.Size(node._input_metadata[0].shape)
    expanded = entries.expand(shape)
    places = [axis for axis in range(len(shape)) if _is_constant(expanded, axis)]
    weighted = [axis for axis in range(len(shape)) if axis not in places]
    one_each = tuple(slice(0, 1) if axis in places else slice(None) for axis in range(len(shape)))
    weights = expanded[one_each].flatten()
    count = prod(shape[axis] for axis in places)

    def matrix(tensor: Tensor) -> Tensor:  # (k, *shape) -> (k, weights, m)
        moved = tensor.permute(0, *(1 + axis for axis in (*weighted, *places)))
        return moved.reshape(len(tensor), len(weights), count)

    def operand(node: Node) -> Tensor:
        assert factor is not None
        return matrix(factor(node).expand(shape)[None])[0].unsqueeze(-1)

    return Product(
        weights.view(-1, 1, 1),
        None if factor is None else operand,
        lambda gradient: matrix(gradient).unsqueeze(-1),
    )


def _is_constant(entries: Tensor, axis: int) -> bool:
    if entries.stride(axis) == 0 or not entries.numel():
        return True
    return bool((entries == entries.narrow(axis, 0, 1)).all())


def _sum(node: Node, position: int, entries: Tensor) -> Product | None:
    if isinstance(node._saved_alpha, complex):
        return None
    sign = -1.0 if node.name() == "SubBackward0" else 1.0
    return _shift(
        node, entries, lambda node: sign * float(node._saved_alpha) if position == 1 else 1.0
    )


def _entrywise_product(node: Node, position: int, entries: Tensor) -> Product:
    return _elementwise(
        node, entries, lambda node: node._saved_other if position == 0 else node._saved_self
    )


def _rectified(node: Node, position: int, entries: Tensor) -> Product:
    return _elementwise(node, entries, lambda node: node._saved_self.clamp(max=0))


def _quotient(node: Node, position: int, entries: Tensor) -> Product:
    def factor(node: Node) -> Tensor:
        divisor: Tensor = node._saved_other
        return 1 / divisor if position == 0 else -node._saved_self / divisor.square()

    return _elementwise(node, entries, factor)


def _normalisation(
    normalised: Operand, features: Callable[[Node, torch.Size], tuple[int, ...]]
) -> Callable[..., Any]:
    """Return the kind of normalisations with a scale (position 1) and a shift (position 2).

    Args:
        normalised: the input as it is before scale and shift.
        features: shape of scale and shift that broadcasts to the output.
    """

    def make(node: Node, position: int, entries: Tensor) -> Product | None:
        if position == 0:
            return None
        shape = features(node, torch.Size(node._input_metadata[0].shape))
        return _elementwise(node, entries.reshape(shape), normalised if position == 1 else None)

    return make


def _layer_normalised(node: Node) -> Tensor:
    result: Tensor = (node._saved_input - node._saved_result1) * node._saved_result2
    return result


def _group_normalised(node: Node) -> Tensor:
    inputs: Tensor = node._saved_input
    grouped = inputs.reshape(node._saved_N, node._saved_group, -1)
    mean, scale = (moment.unsqueeze(-1) for moment in (node._saved_result1, node._saved_result2))
    return ((grouped - mean) * scale).view(inputs.shape)


def _batch_normalised(node: Node) -> Tensor:
    inputs: Tensor = node._saved_input
    if node._saved_training:
        mean, scale = node._saved_result1, node._saved_result2
    else:
        mean = node._saved_running_mean
        scale = (node._saved_running_var + node._saved_eps).rsqrt()
    shape = _of_channels(node, inputs.shape)
    return (inputs - mean.view(shape)) * scale.view(shape)


def _of_channels(node: Node, shape: torch.Size) -> tuple[int, ...]:
    return (1, shape[1], *(1 for _ in shape[2:]))


def _convolution(node: Node, position: int, entries: Tensor) -> Product | None:
    if position == 2:  # the bias
        shape = torch.Size(node._input_metadata[0].shape)
        return _elementwise(node, entries.view(_of_channels(node, shape)), None)
    if position == 0:
        return None
    geometry = Convolution(
        tuple(entries.shape[2:]),
        tuple(node._saved_stride),
        tuple((side, side) for side in node._saved_padding),
        tuple(node._saved_dilation),
        node._saved_groups,
    )
    weights = entries.unflatten(0, (geometry.groups, -1)).flatten(2)

    def patches(inputs: Tensor) -> Tensor:  # (N, C, ...) -> (groups, N * positions, in)
        return geometry.windows(inputs).transpose(0, 1).flatten(1, 2)

    def vectors(outputs: Tensor) -> Tensor:  # the same of one position each
        return (
            outputs.flatten(2).unflatten(1, (geometry.groups, -1)).permute(1, 0, 3, 2).flatten(1, 2)
        )

    if node._saved_transposed:  # the weight takes each input to a patch of the output
        return Product(
            weights,
            lambda node: vectors(node._saved_input),
            lambda gradient: torch.stack([patches(one) for one in gradient]),
        )
    return Product(
        weights.mT,
        lambda node: patches(node._saved_input),
        lambda gradient: torch.stack([vectors(one) for one in gradient]),
    )


def _bilinear(node: Node, position: int, entries: Tensor) -> Product | None:
    """Return the product of :func:`torch.nn.functional.bilinear`: both inputs, multiplied."""
    axes = [[1, 3], [0], [1, 2]], [2, 3]
    found = (
        [[int(axis) for axis in getattr(node, f"_saved_expand{i}")] for i in (1, 2, 3)],
        [int(axis) for axis in node._saved_sumdim],
    )
    if position != 1 or found != axes:
        return None

    def operand(node: Node) -> Tensor:
        first, second = node._saved_i1, node._saved_i3
        return (first.unsqueeze(2) * second.unsqueeze(1)).flatten(1).unsqueeze(0)

    return Product(entries.flatten(1).mT.unsqueeze(0), operand, lambda g: g.unsqueeze(1))


def _embedding(node: Node, position: int, entries: Tensor) -> Product | None:
    numbers = len(entries) * node._saved_indices.numel()
    if node._saved_scale_grad_by_freq or len(entries) > _LARGEST_VOCABULARY:
        return None
    if numbers > _MOST_ONE_HOT:
        return None

    def operand(node: Node) -> Tensor:
        indices = node._saved_indices.flatten()
        padding = _signed_index(node._saved_padding_idx)
        chosen = F.one_hot(indices, len(entries)).to(node._input_metadata[0].dtype)
        if padding >= 0:
            chosen[:, padding] = 0
        return chosen.unsqueeze(0)

    return Product(
        entries.unsqueeze(0), operand, lambda g: g.reshape(len(g), 1, -1, entries.shape[1])
    )


def _signed_index(value: int) -> int:
    return int(value) - 2**64 if value >= 2**63 else int(value)


# Rows of an embedding are found by a product with ones and zeros: not for a language's vocabulary.
_LARGEST_VOCABULARY, _MOST_ONE_HOT = 1024, 2**22
_FACTORS = ("alpha", "beta")

Make = Callable[[Node, int, Tensor], Product | None]

_MATRICES = "linear layers, recurrent cells, attention, `einsum`, their derivatives"
_SUMS = "biases, shifts"
_SCALES = "scales, gates, root mean square norm, products with constants"
_BATCH_NORM = "batch norm in use (`eval`), instance norm"
_KINDS: dict[str, tuple[Make, str]] = {
    "AddmmBackward0": (_matrix_product(1, ("mat1", "mat2"), True), _MATRICES),
    "MmBackward0": (_matrix_product(0, ("self", "mat2"), False), _MATRICES),
    "BmmBackward0": (_matrix_product(0, ("self", "mat2"), False), _MATRICES),
    "BaddbmmBackward0": (_matrix_product(1, ("batch1", "batch2"), True), _MATRICES),
    "MvBackward0": (_matrix_vector, "matrices and vectors, sample by sample"),
    "DotBackward0": (_dot_product, "matrices and vectors, sample by sample"),
    "ConvolutionBackward0": (_convolution, "convolutions, transposed ones, in groups"),
    "AddBackward0": (_sum, _SUMS),
    "SubBackward0": (_sum, _SUMS),
    "MulBackward0": (_entrywise_product, _SCALES),
    "DivBackward0": (_quotient, _SCALES),
    "NativeLayerNormBackward0": (
        _normalisation(
            _layer_normalised,
            lambda node, shape: tuple(shape[-len(node._saved_normalized_shape) :]),
        ),
        "layer norm",
    ),
    "NativeGroupNormBackward0": (_normalisation(_group_normalised, _of_channels), "group norm"),
    "NativeBatchNormBackward0": (_normalisation(_batch_normalised, _of_channels), _BATCH_NORM),
    "CudnnBatchNormBackward0": (_normalisation(_batch_normalised, _of_channels), _BATCH_NORM),
    "PreluKernelBackward0": (_rectified, "parametric rectifiers"),
    "EmbeddingBackward0": (_embedding, f"embeddings of up to {_LARGEST_VOCABULARY} rows"),
    "TrilinearBackward0": (_bilinear, "bilinear layers"),
}


def product_kinds() -> dict[str, str]:
    """Return the names of all nodes that are known as products, with where they come from."""
    return {name: where for name, (_, where) in _KINDS.items() if where}


def register_product(name: str, make: Make) -> None:
    """Let operations of a name be layers, such as one by a :class:`torch.autograd.Function`.

    Args:
        name: name of their node in the autograd graph, ``tensor.grad_fn.name()``.
        make: takes a node, the number of the operand that a parameter is, and the entry of the flat
            parameter at each place of that operand (float64, in its shape); returns the
            :class:`Product`, or None where it is none.

    Raises:
        TypeError: ``name`` is not a string, or ``make`` no function.
        ValueError: the name is that of a kind that is known.
    """
    if not isinstance(name, str):
        raise TypeError(f"name must be that of a node, got {described(name)}; use grad_fn.name()")
    if not callable(make):
        raise TypeError(
            f"make must be a function of node, position, entries, got {described(make)}"
        )
    if name in _KINDS:
        raise ValueError(f"name must be new, got {name!r}, whose products are known already")
    _KINDS[name] = (make, "")
