r"""The Jacobian columns of one linear or convolution layer, held as its two factors.

For ``z = W a + b`` the row of output d of sample b is :math:`\sum_u \delta_{bdu} \otimes a_{bu}`
over the U uses of the weight for that sample (time steps, tokens, positions of a convolution).
With one use the Gram share is the Khatri-Rao form
:math:`(\Delta \Delta^T) \circ (A A^T + 1)` and the columns are never formed.
"""

from collections.abc import Iterator, Sequence
from typing import Protocol

import torch
from torch import Tensor

from hig._jacobian.blocks import (
    COPY_BYTES,
    SCRATCH_BYTES,
    DenseBlock,
    add_self_product,
    sample_chunks,
)

__all__ = ["FactoredBlock", "Patches", "columns_are_smaller", "part_widths"]


class Patches(Protocol):
    """Layer inputs (patches). `inputs` and `of` are used only for communication between ranks."""

    def __call__(self, samples: slice) -> Tensor:
        """Patches (b, groups, U, in) of a slice of samples."""
        ...

    def squares(self, samples: slice) -> Tensor:
        """Squared norms (b, groups, U) of the patches of a slice of samples, float64."""
        ...

    @property
    def dtypes(self) -> set[torch.dtype]:
        """Their precisions."""
        ...

    def inputs(self) -> list[Tensor]:
        """What they are made of: tensors (B, ...)."""
        ...

    def of(self, inputs: Sequence[Tensor]) -> "Patches":
        """The patches of other samples, from what ``inputs`` of theirs gave."""
        ...


class FactoredBlock:
    """Columns of one weight (groups, out, in) and / or one bias (groups * out).

    Args:
        deltas: gradients of the outputs with respect to the layer's outputs,
            (B, D, groups, U, out).
        patches: what the weight was multiplied with; None where only the bias is wanted.
        fan_in: ``in``.
        bias: whether the block has a bias; its columns follow the weight's.
    """

    def __init__(
        self,
        deltas: Tensor,
        patches: Patches | None,
        fan_in: int,
        bias: bool,
    ):
        self.deltas, self.patches, self.bias = deltas, patches, bias
        self.fan_in = fan_in if patches else 0
        self.samples, self.outputs, self.groups, self.uses, self.fan_out = deltas.shape
        self._weight_columns = self.groups * self.fan_out * self.fan_in
        self.columns = self._weight_columns + (self.groups * self.fan_out if bias else 0)

    # -- Gram matrix ---------------------------------------------------------------------------

    def add_gram(self, gram: Tensor) -> None:
        """Add this layer's share of J Jᵀ, by the cheaper route."""
        if self.patches and self._cross_terms_are_cheaper():
            self._add_cross_terms(gram, with_bias=self.bias and self.uses == 1)
            if self.bias and self.uses > 1:
                self._add_bias(gram)
            return
        if self.patches:
            self._add_formed_columns(gram)
        if self.bias:
            self._add_bias(gram)

    def _cross_terms_are_cheaper(self) -> bool:
        n, u, i, o = self.samples * self.outputs, self.uses, self.fan_in, self.fan_out
        pairs = u * (u + 1) // 2
        # An elementwise product is bound by memory: some fifty operations' time per entry.
        cross = pairs * (2 * n * n * o + 2 * self.samples**2 * i) + 50 * u * u * n * n
        formed = 2 * n * u * i * o + 1.2 * n * n * i * o
        return cross <= formed

    def _add_cross_terms(self, gram: Tensor, with_bias: bool) -> None:
        """Σ over pairs of uses of (Δ_u Δ_vᵀ) ∘ (A_u A_vᵀ), + 1 inside for a bias used once."""
        rows = (self.samples, self.outputs) * 2
        view = gram.view(rows)
        patches = self._patches(slice(0, self.samples))
        for group in range(self.groups):
            deltas = self.deltas[:, :, group].flatten(0, 1).double()
            for u in range(self.uses):
                for v in range(u + 1):
                    outer = patches[:, group, u] @ patches[:, group, v].T
                    inner = (deltas[:, u] @ deltas[:, v].T).view(rows)
                    outer = (outer + 1 if with_bias else outer)[:, None, :, None]
                    view.addcmul_(inner, outer)
                    if v < u:
                        view.addcmul_(inner.permute(2, 3, 0, 1), outer.permute(2, 3, 0, 1))

    def _add_formed_columns(self, gram: Tensor) -> None:
        """Form a few columns of the weight's Jacobian at a time, in float64."""
        for groups, outs in self._channels(SCRATCH_BYTES // (8 * len(gram))):
            add_self_product(gram, self._columns(groups, outs))

    def _channels(self, width: int) -> Iterator[tuple[slice, slice]]:
        """Slices of groups and channels that make about ``width`` columns each."""
        return _channels(self.groups, self.fan_out, self.fan_in, width)

    def _columns(self, groups: slice, outs: slice) -> Tensor:
        parts = []
        for chosen in self._chunks():
            deltas = self.deltas[chosen, :, groups, :, outs].double()
            patches = self._patches(chosen)[:, groups]
            parts.append(_rows_of(deltas, patches))
        return torch.cat(parts) if len(parts) > 1 else parts[0]

    def _add_bias(self, gram: Tensor) -> None:
        add_self_product(gram, self._all_bias_rows())

    def _all_bias_rows(self) -> Tensor:
        return torch.cat([self._bias_rows(chosen) for chosen in self._chunks()])

    def _bias_rows(self, samples: slice) -> Tensor:
        return self.deltas[samples].double().sum(3).flatten(2).flatten(0, 1)

    # -- with the samples of other ranks -------------------------------------------------------

    def parts(self, width: int, rows: int) -> Iterator["FactoredBlock | DenseBlock"]:
        """The factors, or a few columns at a time where those are smaller."""
        if not self.columns_are_smaller:
            yield self
            return
        if self.patches:
            for groups, outs in self._channels(width):
                yield DenseBlock(self._columns(groups, outs), self.outputs)
        if self.bias:
            yield from DenseBlock(self._all_bias_rows(), self.outputs).parts(width, rows)

    @property
    def columns_are_smaller(self) -> bool:
        """Whether the columns in float64 take less memory than the factors."""
        held = sum(factor[0].numel() * factor.element_size() for factor in self.factors())
        return columns_are_smaller(held, self.outputs, self.columns)

    def factors(self) -> list[Tensor]:
        """Gradients of the outputs, then what the patches are made of; all (B, ...)."""
        return [self.deltas, *(self.patches.inputs() if self.patches else [])]

    def of(self, factors: list[Tensor]) -> "FactoredBlock":
        """The same layer for other samples."""
        deltas, *inputs = factors
        patches = self.patches.of(inputs) if self.patches else None
        return FactoredBlock(deltas, patches, self.fan_in, self.bias)

    def add_product(self, other: "FactoredBlock", product: Tensor) -> None:
        """Add J J'ᵀ to ``product`` (n, n'), float64, by the cheaper route."""
        if self.patches and self._cross_terms_are_cheaper():
            self._add_cross_product(other, product)
            return
        if self.patches:
            for groups, outs in self._channels(SCRATCH_BYTES // (8 * sum(product.shape))):
                product.addmm_(self._columns(groups, outs), other._columns(groups, outs).T)
        if self.bias:
            product.addmm_(self._all_bias_rows(), other._all_bias_rows().T)

    def _add_cross_product(self, other: "FactoredBlock", product: Tensor) -> None:
        """Σ over pairs of uses of (Δ_u Δ'_vᵀ) ∘ (A_u A'_vᵀ), + 1 inside for a bias."""
        shape = (self.samples, self.outputs, other.samples, other.outputs)
        view = product.view(shape)
        patches, others = (b._patches(slice(0, b.samples)) for b in (self, other))
        for group in range(self.groups):
            deltas, theirs = (b.deltas[:, :, group].flatten(0, 1).double() for b in (self, other))
            for u in range(self.uses):
                for v in range(self.uses):
                    outer = patches[:, group, u] @ others[:, group, v].T + float(self.bias)
                    inner = (deltas[:, u] @ theirs[:, v].T).view(shape)
                    view.addcmul_(inner, outer[:, None, :, None])

    # -- products ------------------------------------------------------------------------------

    def vjp(self, weights: Tensor) -> Tensor:
        """Jᵀ w in float64, from the factors: as exact as the Gram matrix that gave w."""
        weights = weights.view(self.samples, 1, self.outputs)
        total: Tensor | None = None
        for chosen in self._chunks():
            deltas = self.deltas[chosen].double()
            delta = torch.bmm(weights[chosen], deltas.flatten(2)).unflatten(2, deltas.shape[2:])
            delta = delta.squeeze(1)
            parts = []
            if self.patches:
                patches = self.patches(chosen).double()
                # (b, g, u, ·) -> (g, b * u, ·): one matrix product per group
                left, right = (t.transpose(0, 1).flatten(1, 2) for t in (delta, patches))
                parts.append(torch.bmm(left.mT, right).flatten())
            if self.bias:
                parts.append(delta.sum((0, 2)).flatten())
            part = torch.cat(parts) if len(parts) > 1 else parts[0]
            total = part if total is None else total.add_(part)
        assert total is not None  # a batch has samples
        return total

    def jvp(self, direction: Tensor) -> Tensor:
        """J d in float64, from the factors."""
        weight, bias = direction.split([self._weight_columns, self.columns - self._weight_columns])
        weight = weight.view(self.groups, self.fan_out, self.fan_in)
        of_bias = bias.view(self.groups, 1, self.fan_out if self.bias else 0)
        parts = []
        for chosen in self._chunks():
            deltas = self.deltas[chosen].double()
            if self.patches:
                patches = self.patches(chosen).double()
                change = torch.einsum("bgui,goi->bguo", patches, weight)
                change = change.add_(of_bias) if self.bias else change
            else:
                change = of_bias.expand(deltas.shape[0], *deltas.shape[2:])
            parts.append(torch.bmm(deltas.flatten(2), change.flatten(1).unsqueeze(2)).flatten())
        return torch.cat(parts) if len(parts) > 1 else parts[0]

    def formed(self) -> Iterator[tuple[slice, Tensor, Tensor]]:
        """Rows of a few samples at a time.

        Yields:
            The samples; their rows (samples * D, columns), float64; and the squared norms of the
            rows (samples, D), as if uses were orthogonal to one another.
        """
        for chosen in self._chunks():
            deltas = self.deltas[chosen].double()
            squares = deltas.square().sum(-1).flatten(2)
            weights = squares.new_full((len(deltas), squares.shape[2]), float(self.bias))
            parts = []
            if self.patches:
                patches = self.patches(chosen).double()
                weights += patches.square().sum(-1).flatten(1)
                parts.append(_rows_of(deltas, patches))
            if self.bias:
                parts.append(deltas.sum(3).flatten(2).flatten(0, 1))
            rows = torch.cat(parts, dim=1) if len(parts) > 1 else parts[0]
            yield chosen, rows, (squares @ weights.unsqueeze(2)).squeeze(2)

    @property
    def dtypes(self) -> set[torch.dtype]:
        """Precisions of what the factors were computed in."""
        return {self.deltas.dtype} | (self.patches.dtypes if self.patches else set())

    def row_squares(self) -> Tensor:
        """Squared norms of the rows, (n,) float64, as if uses were orthogonal to one another.

        A sum over the uses alone, Σ_u |δ_u|² (|a_u|² + 1): no cancellation between uses makes it
        small, so that their rounding stays below its rounding unit.
        """
        parts = []
        for chosen in self._chunks():
            deltas = self.deltas[chosen].double().square().sum(-1).flatten(2)
            if self.patches:
                patches = self.patches.squares(chosen).flatten(1)
                patches = patches + 1 if self.bias else patches
            else:
                patches = deltas.new_ones((len(deltas), deltas.shape[2]))
            parts.append(torch.bmm(deltas, patches.unsqueeze(2)).flatten())
        return torch.cat(parts) if len(parts) > 1 else parts[0]

    def rows(self, samples: slice) -> Tensor:
        """The rows of the given samples in float64: rounded to float32 they would lose digits."""
        deltas = self.deltas[samples].double()
        parts = []
        if self.patches:
            parts.append(_rows_of(deltas, self.patches(samples).double()))
        if self.bias:
            parts.append(deltas.sum(3).flatten(2).flatten(0, 1))
        return torch.cat(parts, dim=1) if len(parts) > 1 else parts[0]

    def _patches(self, samples: slice) -> Tensor:
        """Patches (b, groups, U, in) in float64, of a block with a weight."""
        assert self.patches is not None
        return self.patches(samples).double()

    def _chunks(self) -> Iterator[slice]:
        positions = self.groups * self.uses
        per_sample = 8 * positions * (self.outputs * self.fan_out + self.fan_in)
        return sample_chunks(self.samples, per_sample, COPY_BYTES)


def columns_are_smaller(factor_bytes: int, outputs: int, columns: int) -> bool:
    """Whether columns in float64 take less memory than factors of so many bytes per sample."""
    return factor_bytes > 8 * outputs * columns


def part_widths(groups: int, fan_out: int, fan_in: int, bias: bool, width: int) -> list[int]:
    """Columns of each part in which a layer is exchanged as matrices of about ``width`` columns.

    Args:
        groups: number of groups.
        fan_out: outputs per group.
        fan_in: inputs per group, 0 for a bias alone.
        bias: whether the columns of a bias follow.
        width: what each part should have.
    """
    widths = []
    if fan_in:
        for in_groups, outs in _channels(groups, fan_out, fan_in, width):
            chosen = len(range(groups)[in_groups]) * len(range(fan_out)[outs])
            widths.append(chosen * fan_in)
    rest = groups * fan_out if bias else 0
    return widths + [min(width, rest - start) for start in range(0, rest, width)]


def _channels(groups: int, fan_out: int, fan_in: int, width: int) -> Iterator[tuple[slice, slice]]:
    """Slices of groups and channels that make about ``width`` columns each."""
    channels = max(1, width // fan_in)
    step_groups = max(1, channels // fan_out)
    for group in range(0, groups, step_groups):
        for out in range(0, fan_out, channels):
            yield slice(group, group + step_groups), slice(out, out + channels)


def _rows_of(deltas: Tensor, patches: Tensor) -> Tensor:
    """Σ_u δ_u ⊗ a_u: (b, D, g, U, o), (b, g, U, i) -> (b * D, g * o * i)."""
    rows = torch.einsum("bdguo,bgui->bdgoi", deltas, patches)
    return rows.flatten(2).flatten(0, 1)
