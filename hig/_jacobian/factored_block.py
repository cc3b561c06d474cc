r"""Jacobian columns of one linear or convolution layer, held as two factors.

For ``z = W a + b`` the row of output d of sample b is :math:`\sum_u \delta_{bdu} \otimes a_{bu}`
over the U uses of the weight for that sample (time steps, tokens, positions of a convolution),
with :math:`\delta_{bdu} = \partial y_{bd} / \partial z_{bu}`. With one use the share of the Gram
matrix is the Khatri-Rao form :math:`(\Delta \Delta^T) \circ (A A^T + 1)`, and the columns are never
formed. With several, as the positions of a convolution, ``add_gram`` takes the cheaper of the cross
terms and columns that are formed a few at a time.

Shapes: deltas (B, D, groups, U, out), patches (B, groups, U, in). Patches have no axis D: the
inputs of a layer do not depend on the output that is differentiated. Groups of a convolution
have separate weights, so that their columns follow one another: a row is (groups, out, in),
flattened as the weight is, then the bias (groups, out).
"""

from collections.abc import Iterable, Iterator, Sequence
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
    """Layer inputs (patches). `inputs` and `of` are for communication between process ranks."""

    def __call__(self, samples: slice) -> Tensor:
        """Return the patches (b, groups, U, in) of a slice of samples."""
        ...

    def pieces(self, samples: slice, most: int) -> Iterator[tuple[slice, Tensor]]:
        """Yield slices of about ``most`` uses, with their patches (b, groups, u, in), float64.

        At least one, in their order, and each use once.
        """
        ...

    def squares(self, samples: slice) -> Tensor:
        """Return the squared norms (b, groups, U) of these patches, float64."""
        ...

    @property
    def dtypes(self) -> set[torch.dtype]:
        """Precisions of the layer inputs."""
        ...

    def inputs(self) -> list[Tensor]:
        """Return the tensors (B, ...) that the patches are unfolded from."""
        ...

    def of(self, inputs: Sequence[Tensor]) -> "Patches":
        """Return the patches of other samples, from the ``inputs`` of these."""
        ...


class FactoredBlock:
    """Columns of one weight (groups, out, in) and / or one bias (groups * out).

    Args:
        deltas: gradients of the outputs with respect to the layer's outputs,
            (B, D, groups, U, out).
        patches: the layer inputs; None for a bias alone.
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
        """Return whether U (U + 1) / 2 products (n, n) beat forming the (n, in * out) columns.

        One use (a plain linear layer) favours cross terms, which never see in * out; the many
        positions of a convolution favour columns, where uses are summed before the product.
        """
        n, u, i, o = self.samples * self.outputs, self.uses, self.fan_in, self.fan_out
        pairs = u * (u + 1) // 2
        # An elementwise product is bound by memory: some fifty operations' time per entry.
        cross = pairs * (2 * n * n * o + 2 * self.samples**2 * i) + 50 * u * u * n * n
        formed = 2 * n * u * i * o + 1.2 * n * n * i * o
        return cross <= formed

    def _add_cross_terms(self, gram: Tensor, with_bias: bool) -> None:
        """Add Σ over pairs of uses of (Δ_u Δ_vᵀ) ∘ (A_u A_vᵀ), + 1 inside for a bias used once.

        From ⟨Σ_u δ_u ⊗ a_u, Σ_v δ'_v ⊗ a'_v⟩ = Σ_uv ⟨δ_u, δ'_v⟩ ⟨a_u, a'_v⟩. The 1 adds the bias,
        whose "patch" is 1; with several uses `_add_bias` sums their deltas first instead.
        """
        # n = (B, D): A Aᵀ is (B, B), the same for all outputs of two samples, and is broadcast
        # over both axes D instead of being repeated.
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
                    if v < u:  # the pair (v, u) is the transpose
                        view.addcmul_(inner.permute(2, 3, 0, 1), outer.permute(2, 3, 0, 1))

    def _add_formed_columns(self, gram: Tensor) -> None:
        """Add J Jᵀ from a few columns of the weight's Jacobian at a time, formed in float64."""
        for groups, outs in self._channels(SCRATCH_BYTES // (8 * len(gram))):
            add_self_product(gram, self._columns(groups, outs))

    def _channels(self, width: int) -> Iterator[tuple[slice, slice]]:
        return _channels(self.groups, self.fan_out, self.fan_in, width)

    def _columns(self, groups: slice, outs: slice) -> Tensor:
        parts = [self._weight_rows(samples, groups, outs) for samples in self._chunks()]
        return torch.cat(parts) if len(parts) > 1 else parts[0]

    def _weight_rows(
        self, samples: slice, groups: slice = slice(None), outs: slice = slice(None)
    ) -> Tensor:
        """Return Σ_u δ_u ⊗ a_u of some samples, (b * D, g * o * in)."""
        total: Tensor | None = None
        for uses, patches in self._pieces(samples):
            deltas = self.deltas[samples, :, groups, uses, outs].double()
            rows = torch.einsum("bdguo,bgui->bdgoi", deltas, patches[:, groups])
            total = rows if total is None else total.add_(rows)
        assert total is not None  # there is at least one piece
        return total.flatten(2).flatten(0, 1)

    def _add_bias(self, gram: Tensor) -> None:
        add_self_product(gram, self._all_bias_rows())

    def _all_bias_rows(self) -> Tensor:
        return torch.cat([self._bias_rows(samples) for samples in self._chunks()])

    def _bias_rows(self, samples: slice) -> Tensor:
        # A bias is added in every use: (b, D, groups, U, out) is summed over U.
        return self.deltas[samples].sum(3, dtype=torch.float64).flatten(2).flatten(0, 1)

    # -- with the samples of other process ranks -----------------------------------------------

    def parts(self, width: int, rows: int) -> Iterator["FactoredBlock | DenseBlock"]:
        """Yield the factors, or a few columns at a time if those are smaller."""
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
        """Return whether the columns in float64 take less memory than the factors."""
        held = sum(factor[0].numel() * factor.element_size() for factor in self.factors())
        return columns_are_smaller(held, self.outputs, self.columns)

    def factors(self) -> list[Tensor]:
        """Return the deltas, then the inputs of the patches; all (B, ...)."""
        return [self.deltas, *(self.patches.inputs() if self.patches else [])]

    def of(self, factors: list[Tensor]) -> "FactoredBlock":
        """Return the same layer for other samples."""
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
        """Add Σ over pairs of uses of (Δ_u Δ'_vᵀ) ∘ (A_u A'_vᵀ), + 1 inside for a bias.

        Between different samples there is no symmetry to use: all U² pairs are needed, and with
        them the 1 of the bias is complete for any number of uses.
        """
        shape = (self.samples, self.outputs, other.samples, other.outputs)
        view = product.view(shape)
        both = (self, other)
        patches, other_patches = (b._patches(slice(0, b.samples)) for b in both)
        for group in range(self.groups):
            deltas, other_deltas = (b.deltas[:, :, group].flatten(0, 1).double() for b in both)
            for u in range(self.uses):
                for v in range(self.uses):
                    outer = patches[:, group, u] @ other_patches[:, group, v].T + float(self.bias)
                    inner = (deltas[:, u] @ other_deltas[:, v].T).view(shape)
                    view.addcmul_(inner, outer[:, None, :, None])

    # -- products ------------------------------------------------------------------------------

    def vjp(self, weights: Tensor) -> Tensor:
        """Jᵀ w in float64, from the factors: as exact as the Gram matrix that gave w."""
        weights = weights.view(self.samples, 1, self.outputs)
        total: Tensor | None = None
        for samples in self._chunks():
            for uses, patches in self._pieces(samples):
                deltas = self.deltas[samples, :, :, uses].double()
                # Sum over D first: (b, 1, D) @ (b, D, g * u * o) -> one delta (b, g, u, o) each.
                delta = torch.bmm(weights[samples], deltas.flatten(2))
                delta = delta.unflatten(2, deltas.shape[2:]).squeeze(1)
                parts = []
                if self.patches:
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
        """J d in float64, from the factors: the change of z = W a + b, then its product with δ."""
        weight, bias = direction.split([self._weight_columns, self.columns - self._weight_columns])
        weight = weight.view(self.groups, self.fan_out, self.fan_in)
        of_bias = bias.view(self.groups, 1, self.fan_out if self.bias else 0)
        parts = []
        for samples in self._chunks():
            total: Tensor | None = None
            for uses, patches in self._pieces(samples):
                deltas = self.deltas[samples, :, :, uses].double()
                if self.patches:
                    change = torch.einsum("bgui,goi->bguo", patches, weight)
                    change = change.add_(of_bias) if self.bias else change
                else:
                    change = of_bias.expand(deltas.shape[0], *deltas.shape[2:])
                part = torch.bmm(deltas.flatten(2), change.flatten(1).unsqueeze(2)).flatten()
                total = part if total is None else total.add_(part)
            assert total is not None  # there is at least one piece
            parts.append(total)
        return torch.cat(parts) if len(parts) > 1 else parts[0]

    def form_rows(self) -> Iterator[tuple[slice, Tensor, Tensor]]:
        """Yield the rows of a few samples at a time.

        Yields:
            The samples; their rows (samples * D, columns), float64; and the squared norms of the
            rows (samples, D), as if uses were orthogonal to one another.
        """
        for samples in self._chunks():
            yield samples, self.rows(samples), self._row_squares(samples)

    @property
    def like(self) -> Tensor:
        """Any tensor on the device."""
        return self.deltas

    @property
    def dtypes(self) -> set[torch.dtype]:
        """Precisions in which the factors were computed."""
        return {self.deltas.dtype} | (self.patches.dtypes if self.patches else set())

    def row_squares(self) -> Tensor:
        """Squared norms of the rows, (n,) float64, as if uses were orthogonal to one another.

        A sum over the uses alone, Σ_u |δ_u|² (|a_u|² + 1): no cancellation between uses makes it
        small, so that their rounding stays below its rounding unit.
        """
        parts = [self._row_squares(samples).flatten() for samples in self._chunks()]
        return torch.cat(parts) if len(parts) > 1 else parts[0]

    def _row_squares(self, samples: slice) -> Tensor:
        """Return the same of some samples, (b, D)."""
        deltas = self.deltas[samples].double().square().sum(-1).flatten(2)
        if self.patches:
            patches = self.patches.squares(samples).flatten(1)
            patches = patches + 1 if self.bias else patches
        else:
            patches = deltas.new_ones((len(deltas), deltas.shape[2]))
        return torch.bmm(deltas, patches.unsqueeze(2)).squeeze(2)

    def rows(self, samples: slice) -> Tensor:
        """Return the rows of the given samples in float64: in float32 they would lose digits."""
        parts = []
        if self.patches:
            parts.append(self._weight_rows(samples))
        if self.bias:
            parts.append(self._bias_rows(samples))
        return torch.cat(parts, dim=1) if len(parts) > 1 else parts[0]

    def _pieces(self, samples: slice) -> Iterable[tuple[slice, Tensor]]:
        """Return some uses at a time, with their patches in float64, none without a weight."""
        if self.uses == 1 and self.patches:  # of most layers, in the shortest way
            return ((slice(None), self._patches(samples)),)
        return self._several_pieces(samples)

    def _several_pieces(self, samples: slice) -> Iterator[tuple[slice, Tensor]]:
        count = len(self.deltas[samples])
        per_use = 8 * count * self.groups * (self.outputs * self.fan_out + self.fan_in)
        most = max(1, COPY_BYTES // per_use)
        if self.patches:
            yield from self.patches.pieces(samples, most)
            return
        nothing = self.deltas.new_empty((count, self.groups, 0, 0), dtype=torch.float64)
        for start in range(0, max(1, self.uses), most):
            yield slice(start, start + most), nothing

    def _patches(self, samples: slice) -> Tensor:
        """Return the patches (b, groups, U, in) in float64, of a block with a weight."""
        assert self.patches is not None
        return self.patches(samples).double()

    def _chunks(self) -> Iterator[slice]:
        positions = self.groups * self.uses
        per_sample = 8 * positions * (self.outputs * self.fan_out + self.fan_in)
        return sample_chunks(self.samples, per_sample, COPY_BYTES)


def columns_are_smaller(factor_bytes: int, outputs: int, columns: int) -> bool:
    """Return whether float64 columns take less memory than factors of some bytes per sample."""
    return factor_bytes > 8 * outputs * columns


def part_widths(groups: int, fan_out: int, fan_in: int, bias: bool, width: int) -> list[int]:
    """Return the numbers of columns in which a layer is exchanged as matrices.

    Args:
        groups: number of groups.
        fan_out: outputs per group.
        fan_in: inputs per group, 0 for a bias alone.
        bias: whether the columns of a bias follow.
        width: number of columns that each part should have.
    """
    widths = []
    if fan_in:
        for in_groups, outs in _channels(groups, fan_out, fan_in, width):
            channels = len(range(groups)[in_groups]) * len(range(fan_out)[outs])
            widths.append(channels * fan_in)
    bias_columns = groups * fan_out if bias else 0
    return widths + [min(width, bias_columns - start) for start in range(0, bias_columns, width)]


def _channels(groups: int, fan_out: int, fan_in: int, width: int) -> Iterator[tuple[slice, slice]]:
    """Yield slices of groups and channels that make about ``width`` columns each.

    Columns are ordered (groups, out, in): several channels of one group, or several whole groups,
    are contiguous.
    """
    channels = max(1, width // fan_in)
    step_groups = max(1, channels // fan_out)
    for group in range(0, groups, step_groups):
        for out in range(0, fan_out, channels):
            yield slice(group, group + step_groups), slice(out, out + channels)
