r"""The gradients of several losses, reduced to the few numbers that combining them takes.

Every operator here returns a linear combination of the gradients, and which one depends on their
lengths and on the cosines between them alone: m + m² numbers, whatever the number of parameters.
These are computed in float64, once, and brought to the CPU; what follows is arithmetic on an
(m, m) matrix and one product at the end.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import reduce

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from hig._converging import converging, eigenvectors, thin_svd
from hig.conflictfree._gradients import as_vectors, check_finite

__all__ = ["Combination", "GradientMatrix", "check_finite"]

FloatArray = npt.NDArray[np.float64]

# Left vectors, values, and what makes a vector of components along the right vectors.
Singular = tuple[Tensor, Tensor, Callable[[Tensor], Tensor] | None]

# Entries that are held in float64 at one time: 2 MB, which stay in the cache.
CHUNK_ENTRIES = 2**18
# Up to so many losses inner products are formed one by one.
FEW = 3
# A float64 Gram matrix with smaller relative eigenvalues gives the direction to less than 1e-8.
GRAM_FLOOR = 1e-8
# Below this, squares of float64 entries have lost digits, or everything.
SMALLEST_SQUARE = 1e-200


@dataclass(frozen=True)
class Combination:
    r"""A vector :math:`d = \sum_i b_i u_i` of the span of unit gradients.

    Attributes:
        coefficients: b, (m,) float64 on the CPU.
        projections: :math:`u_i \cdot d`, (m,) float64 on the CPU; zero for a zero gradient.
        norm: length of d; exactly zero where d is zero up to rounding.
        vector: d itself, (P,) float64 on the device of the gradients, where its coefficients
            nearly cancel and would not give it to full precision; else None.
    """

    coefficients: Tensor
    projections: Tensor
    norm: float
    vector: Tensor | None = None

    @property
    def cosines(self) -> Tensor:
        """Cosines between d and the gradients, (m,) float64; zero where one of both is zero."""
        return self.projections / self.norm if self.norm else torch.zeros_like(self.projections)


class GradientMatrix:
    """The gradients of m losses with respect to P parameters.

    Args:
        gradients: (m, P), or a sequence of m vectors (P,); real floating point.

    Attributes:
        norms: their lengths, (m,) float64 on the CPU.
        cosines: between any two, (m, m) float64 on the CPU; zero for a zero gradient.
        rcond: singular values of the unit rows up to this, relative to the largest, are rounding
            errors of the gradients. Rounding moves a row by less than eps of its length, however
            long it is, so P does not enter.
        dtype: of the gradients.
        device: of the gradients.

    Raises:
        NonFiniteError: a gradient holds NaN or Inf; the text names its loss.
        TypeError: the gradients are not real floating-point tensors.
        ValueError: they do not form an (m, P) matrix with m > 0.
    """

    def __init__(self, gradients: Tensor | Sequence[Tensor]):
        vectors = as_vectors(gradients)
        self.dtype, self.device = vectors[0].dtype, vectors[0].device
        self._vectors, self._size = vectors, vectors[0].shape[-1]
        self._rows = vectors if isinstance(vectors, Tensor) else None
        self.rcond = 8 * len(vectors) * torch.finfo(self.dtype).eps
        self._width = max(1, CHUNK_ENTRIES // len(vectors))
        self._only_chunk = self.rows.double() if self._size <= self._width else None
        self._few = len(vectors) <= FEW and self.device.type == "cpu"
        self._scale: Tensor | None = None
        gram = self._gram()
        squares = gram.diagonal()
        exact = self.dtype != torch.float64  # no square of a shorter type leaves the range
        if not _in_range(squares, exact):
            self._rescale()
            gram = self._gram()
            squares = gram.diagonal()
        lengths = np.sqrt(squares)
        # Lengths of the rows that `_chunks` yields; 1 for a zero row.
        self._lengths = np.where(lengths > 0, lengths, 1.0)
        norms = lengths if self._scale is None else lengths * self._scale.cpu().numpy()
        self._cosines = gram / self._lengths / self._lengths[:, None]
        self.norms, self.cosines = torch.from_numpy(norms), torch.from_numpy(self._cosines)

    @property
    def rows(self) -> Tensor:
        """The gradients, (m, P), as given."""
        if self._rows is None:
            self._rows = torch.stack(list(self._vectors))
        return self._rows

    def combination(self, coefficients: Tensor) -> Combination:
        """The combination of unit gradients with given coefficients, (m,) float64 on the CPU."""
        values = coefficients.numpy()  # on so few numbers a call of numpy takes half of torch's
        projections = self._cosines @ values
        square = float(values @ projections)
        # A Gram matrix cannot tell how much is left where nearly everything has cancelled.
        if square > GRAM_FLOOR * float(np.abs(values).sum()) ** 2:
            return Combination(coefficients, torch.from_numpy(projections), square**0.5)
        vector = self._combine(values, torch.float64)
        norm = float(vector.norm())
        if norm <= self.rcond * float(np.abs(values).max()):
            return self._nothing()
        return Combination(coefficients, self._project(vector), norm, vector)

    def pseudo_inverse(self, weights: Tensor, exact: bool = False) -> Combination:
        r"""The shortest d whose cosines with the gradients are closest to the weights.

        :math:`d = U^+ w` with the unit gradients as rows of U (Liu, Chu, Thuerey, ICLR 2025,
        arXiv 2408.11104, equation 2), so that :math:`u_i \cdot d = w_i` where the gradients are
        linearly independent. Zero gradients are left out.

        Args:
            weights: w, (m,).
            exact: decompose U itself also where its Gram matrix would be accurate.

        Raises:
            ValueError: there is not one weight per gradient.
        """
        if weights.shape != self.norms.shape:
            raise ValueError(
                f"there must be one weight per gradient, got weights of shape "
                f"{tuple(weights.shape)} for {len(self.norms)} gradients"
            )
        weights = weights.detach().to("cpu", torch.float64)
        active = (self.norms > 0).nonzero().flatten()
        complete = len(active) == len(self.norms)
        if not complete:
            weights = weights[active]
        left, values, right = self._singular(active, exact)
        spectral = weights @ left
        # Anti-parallel gradients, for one: no direction has a positive cosine with both.
        if _length(spectral) <= self.rcond * _length(weights):
            return self._nothing()
        components = spectral / values
        coefficients, projections = left @ (components / values), left @ spectral
        if not complete:
            spread = self.norms.new_zeros((2, len(self.norms)))
            spread[:, active] = torch.stack([coefficients, projections])
            coefficients, projections = spread
        vector = None if right is None else right(components)
        return Combination(coefficients, projections, _length(components), vector)

    def lift(self, combination: Combination, factor: float = 1.0) -> Tensor:
        """A multiple of a combination as a vector (P,), dtype of the gradients."""
        if combination.vector is not None:
            return (factor * combination.vector).to(self.dtype)
        return self._combine(factor * combination.coefficients.numpy(), self.dtype)

    # -- details ---------------------------------------------------------------------------------

    def _chunks(self) -> Iterator[Tensor]:
        """The gradients in float64, a few columns at a time, in memory that is used again.

        Memory that is new costs more than the arithmetic on it: pages are made when first written.
        """
        if self._only_chunk is not None:
            yield self._only_chunk
            return
        memory = None
        for pieces in self._pieces():
            if isinstance(pieces, Tensor) and pieces.dtype == torch.float64:
                chunk = pieces
            else:
                if memory is None or memory.shape[1] != pieces[0].shape[0]:
                    shape = (len(pieces), pieces[0].shape[0])
                    memory = torch.empty(shape, dtype=torch.float64, device=self.device)
                chunk = _copied_into(memory, pieces)
            yield chunk if self._scale is None else chunk / self._scale.unsqueeze(1)

    def _pieces(self) -> Iterator[Tensor | tuple[Tensor, ...]]:
        """The same in the dtype of the gradients: (m, w), or m vectors (w,)."""
        if isinstance(self._vectors, Tensor):
            return iter(self._vectors.split(self._width, dim=1))
        return zip(*(vector.split(self._width) for vector in self._vectors), strict=True)

    def _gram(self) -> FloatArray:
        if not self._few:
            return reduce(torch.add, (chunk @ chunk.T for chunk in self._chunks())).cpu().numpy()
        # A matrix product prepares its operands; of so few rows that takes longer than it saves.
        gram = np.zeros((len(self._vectors), len(self._vectors)))
        for chunk in self._chunks():
            rows = chunk.unbind()
            for i, first in enumerate(rows):
                for j in range(i + 1):
                    gram[i, j] += first.dot(rows[j]).item()
        return np.tril(gram) + np.tril(gram, -1).T

    def _rescale(self) -> None:
        """Bring the largest entry of each row to 1, so that its square exists."""
        check_finite(self.rows)
        if not self._size:
            return
        largest = self.rows.abs().amax(1).double()
        self._scale = torch.where(largest > 0, largest, 1.0)
        if self._only_chunk is not None:
            self._only_chunk = self._only_chunk / self._scale.unsqueeze(1)

    def _combine(self, coefficients: FloatArray, dtype: torch.dtype) -> Tensor:
        """Combination of unit gradients, computed in float64."""
        weights = coefficients / self._lengths
        if self._is_sum(weights) and dtype == self.dtype:
            # No partial sum is longer than the whole: rounding in their own type is harmless.
            return reduce(torch.add, self._vectors)
        factors = torch.from_numpy(weights).to(self.device)
        if self._only_chunk is not None:
            return (factors @ self._only_chunk).to(dtype)
        combined = torch.empty(self._size, dtype=dtype, device=self.device)
        memory = torch.empty(self._width, dtype=torch.float64, device=self.device)
        for chunk, part in zip(self._chunks(), combined.split(self._width), strict=True):
            if self._few:
                total = torch.mul(chunk[0], weights[0], out=memory[: len(part)])
                for row, weight in zip(chunk[1:], weights[1:].tolist(), strict=True):
                    total.add_(row, alpha=weight)
            else:
                total = factors @ chunk
            part.copy_(total)
        return combined

    def _is_sum(self, weights: FloatArray) -> bool:
        """Whether a combination is the plain sum of few gradients of which none conflict."""
        return (
            self._few
            and self._scale is None
            and self.dtype.itemsize >= 4
            and all(weight == 1.0 for weight in weights.tolist())
            and bool((self._cosines >= 0).all())
        )

    def _project(self, vector: Tensor) -> Tensor:
        """Products of the unit gradients with a vector (P,) float64."""
        pieces = vector.split(self._width)
        products = reduce(torch.add, (c @ p for c, p in zip(self._chunks(), pieces, strict=True)))
        return products.cpu() / torch.from_numpy(self._lengths)

    def _nothing(self) -> Combination:
        zero = torch.zeros_like(self.norms)
        return Combination(zero, zero, 0.0)

    def _singular(self, active: Tensor, exact: bool) -> Singular:
        """Singular values of the unit gradients of k losses, those that are rounding left out.

        Returns:
            Left vectors (k, r), values (r,), and a function from r components along the right
            vectors to a vector (P,), or None: then the rows are independent enough to give it.
        """
        if not len(active):
            return self.norms.new_zeros((0, 0)), self.norms.new_zeros(0), None
        if not exact:
            complete = len(active) == len(self.norms)
            gram = self.cosines if complete else self.cosines[active][:, active]
            squares, left = converging(eigenvectors, gram, [])
            if float(squares[0]) > GRAM_FLOOR * float(squares[-1]):
                return left, squares.sqrt(), None
        basis, triangle = torch.linalg.qr(self._units(active).T)
        left, values, right = converging(thin_svd, triangle.T.cpu(), [])
        keep = values > self.rcond * values[0]
        rotation = right[keep].T

        def lifted(components: Tensor) -> Tensor:
            return basis @ (rotation @ components).to(basis.device)

        return left[:, keep], values[keep], lifted

    def _units(self, active: Tensor) -> Tensor:
        """Unit gradients of k losses, (k, P) float64: twice the memory of float32 gradients."""
        active = active.to(self.device)
        rows = torch.cat([chunk[active] for chunk in self._chunks()], dim=1)
        lengths = torch.from_numpy(self._lengths)[active.cpu()]
        return rows / lengths.to(rows.device).unsqueeze(1)


def _copied_into(memory: Tensor, pieces: Tensor | tuple[Tensor, ...]) -> Tensor:
    """Rows of a chunk in memory of another dtype."""
    if isinstance(pieces, Tensor):
        return memory.copy_(pieces)
    for row, piece in zip(memory.unbind(), pieces, strict=True):
        row.copy_(piece)
    return memory


def _length(few: Tensor) -> float:
    """Length of a vector of few numbers; faster than a call of torch."""
    return math.hypot(*few.tolist())


def _in_range(squares: FloatArray, exact: bool) -> bool:
    """Whether squared lengths are finite, and lost no digits to underflow."""
    return all(
        (square > SMALLEST_SQUARE or (exact and square == 0)) and square < float("inf")
        for square in squares.tolist()
    )
