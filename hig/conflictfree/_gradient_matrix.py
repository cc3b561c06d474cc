r"""Gradients of several losses, reduced to their lengths and the cosines between them.

Every operator here returns a linear combination of the gradients that depends only on their
lengths and on the cosines between them: m + m² numbers, for any number of parameters.
These are computed in float64, once, and copied to the CPU; the rest is arithmetic on an
(m, m) matrix and one product at the end.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import reduce
from operator import mul

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from hig._torch.linalg import eigenvectors, thin_svd, with_cpu_fallback
from hig.conflictfree import _few as few
from hig.conflictfree._few import FEW, GRAM_FLOOR
from hig.conflictfree._gradients import as_vectors, check_finite
from hig.conflictfree._scratch import give_back, take

__all__ = ["Combination", "GradientMatrix"]

FloatArray = npt.NDArray[np.float64]
# Left vectors, values, and the map from components along the right vectors to a vector.
Singular = tuple[FloatArray, FloatArray, Callable[[Tensor], Tensor] | None]

# Entries of few losses that are held in float64 at one time: 2 MB, which stay in the cache. Of
# many losses MANY_TIMES more: there the number of calls counts, and their products take longer.
# Up to KEPT_TIMES as many (twice for few losses), all columns are kept as a single chunk.
CHUNK_ENTRIES = 2**18
MANY_TIMES, KEPT_TIMES = 4, 16
# Vectors up to this length come from the allocator's cache.
SMALL_SIZE = 2**14
EPS = {
    dtype: torch.finfo(dtype).eps
    for dtype in (torch.float16, torch.bfloat16, torch.float32, torch.float64)
}


@dataclass(frozen=True)
class Combination:
    r"""Vector :math:`d = \sum_i b_i u_i` in the span of the unit gradients.

    Args:
        factors: b, m numbers.
        products: :math:`u_i \cdot d`, m numbers; zero for a zero gradient.
        norm: length of d; exactly zero where d is zero up to rounding.
        vector: d itself, (P,) float64 on the device of the gradients, if its coefficients
            nearly cancel and would not give it to full precision; else None.
    """

    factors: list[float]
    products: list[float]
    norm: float
    vector: Tensor | None = None

    @property
    def projections(self) -> Tensor:
        r""":math:`u_i \cdot d`, (m,) float64 on the CPU."""
        return torch.tensor(self.products, dtype=torch.float64, device="cpu")

    @property
    def cosines(self) -> Tensor:
        """Cosines between d and the gradients, (m,) float64; zero if either is zero."""
        return self.projections / self.norm if self.norm else torch.zeros_like(self.projections)


class GradientMatrix:
    """Gradients of m losses with respect to P parameters.

    Args:
        gradients: (m, P), or a sequence of m vectors (P,); real floating point.

    Attributes:
        lengths: lengths of the gradients, m numbers.
        rcond: singular values of the unit rows up to this, relative to the largest, are rounding
            errors of the gradients. Rounding moves a row by less than eps of its length, for any
            P, so P does not enter.
        dtype: dtype of the gradients.
        device: device of the gradients.

    Raises:
        NonFiniteError: a gradient holds NaN or Inf; the text names its loss.
        TypeError: the gradients are not real floating-point tensors.
        ValueError: they do not form an (m, P) matrix with m > 0.
    """

    def __init__(self, gradients: Tensor | Sequence[Tensor]):
        vectors = as_vectors(gradients)
        self.dtype, self.device = vectors[0].dtype, vectors[0].device
        count, self._size = len(vectors), vectors[0].shape[-1]
        self._vectors = vectors
        self.few = count <= FEW and self.device.type == "cpu"
        self._width = max(1, (1 if self.few else MANY_TIMES) * CHUNK_ENTRIES // count)
        kept = (2 if self.few else KEPT_TIMES) * CHUNK_ENTRIES
        if self._size * count <= kept:
            self._width = max(1, self._size)
        self.rcond = 8 * count * EPS[self.dtype]
        self._only_chunk: Tensor | None = None
        self._memory: Tensor | None = None
        self._only_rows: list[Tensor] | None = None
        self._scale: Tensor | None = None
        gram = self._gram()
        squares = [row[i] for i, row in enumerate(gram)]
        # Squares of a shorter type than float64 cannot over- or underflow in float64.
        if not few.in_range(squares, exact=self.dtype != torch.float64):
            self._rescale()
            gram = self._gram()
            squares = [row[i] for i, row in enumerate(gram)]
        self.lengths = lengths = [math.sqrt(square) for square in squares]
        # Lengths of the rows that `_chunks` yields; 1 for a zero row: its cosines are not NaN.
        self._divisors = [length or 1.0 for length in lengths]
        if self._scale is not None:
            scales = self._scale.tolist()
            self.lengths = [length * scale for length, scale in zip(lengths, scales, strict=True)]
        # Between any two gradients, m rows of m numbers; zero for a zero gradient.
        self.angles = self._divided(gram)

    @property
    def norms(self) -> Tensor:
        """Lengths of the gradients, (m,) float64 on the CPU."""
        return torch.tensor(self.lengths, dtype=torch.float64, device="cpu")

    @property
    def cosines(self) -> Tensor:
        """Between any two gradients, (m, m) float64 on the CPU; zero for a zero gradient."""
        return torch.tensor(self.angles, dtype=torch.float64, device="cpu")

    @property
    def rows(self) -> Tensor:
        """The gradients, (m, P), in their own dtype."""
        if not isinstance(self._vectors, Tensor):
            self._vectors = torch.stack(self._vectors)
        return self._vectors

    def combination(self, coefficients: Tensor | list[float]) -> Combination:
        """Combine the unit gradients with the given coefficients, m numbers."""
        factors = coefficients.tolist() if isinstance(coefficients, Tensor) else coefficients
        products = self._projected(factors)
        square = sum(map(mul, factors, products))
        # If nearly everything cancels, the rest is smaller than the rounding of the Gram matrix.
        if square > GRAM_FLOOR * sum(map(abs, factors)) ** 2:
            return Combination(factors, products, math.sqrt(square))
        vector = self._combine(factors, torch.float64)
        norm = float(vector.norm())
        if norm <= self.rcond * max(map(abs, factors)):
            return self._nothing()
        return Combination(factors, self._project(vector), norm, vector)

    def pseudo_inverse(self, weights: Tensor | list[float], exact: bool = False) -> Combination:
        r"""Find the shortest d whose products with the unit gradients are closest to the weights.

        :math:`d = U^+ w` with the unit gradients as rows of U (Liu, Chu, Thuerey, ICLR 2025,
        arXiv 2408.11104, equation 2), so that :math:`u_i \cdot d = w_i` if the gradients are
        linearly independent. Zero gradients are left out.

        Args:
            weights: w, (m,) or m numbers.
            exact: decompose U itself even if its Gram matrix would be accurate.

        Raises:
            ValueError: there is not one weight per gradient.
        """
        if isinstance(weights, Tensor):
            if tuple(weights.shape) != (len(self.lengths),):
                raise ValueError(
                    f"there must be one weight per gradient, got weights of shape "
                    f"{tuple(weights.shape)} for {len(self.lengths)} gradients"
                )
            weights = [float(weight) for weight in weights.tolist()]
        numbers = weights
        active = [i for i, length in enumerate(self.lengths) if length > 0]
        if len(active) == len(numbers) <= FEW and not exact:
            solved = few.solved(self.angles, numbers)
            if solved is not None:
                factors, norm = solved
                return Combination(factors, numbers, norm) if norm else self._nothing()
        wanted = np.array(numbers)[active]
        left, values, right = self._singular(active, exact)
        spectral = wanted @ left
        # Anti-parallel gradients, for one: no direction has a positive cosine with both.
        if math.hypot(*spectral.tolist()) <= self.rcond * math.hypot(*wanted.tolist()):
            return self._nothing()
        # With U = L S Rᵀ: d = U⁺ w = R S⁻¹ Lᵀ w. As a combination of the rows, d = Uᵀ b with
        # b = L S⁻² Lᵀ w; its products with them are U d = L Lᵀ w. Zero gradients get zeros.
        components = spectral / values
        spread = np.zeros((2, len(numbers)))
        spread[:, active] = left @ (components / values), left @ spectral
        vector = None if right is None else right(torch.from_numpy(components))
        factors, products = spread.tolist()
        return Combination(factors, products, math.hypot(*components.tolist()), vector)

    def lift(self, combination: Combination, factor: float = 1.0) -> Tensor:
        """Return a multiple of a combination as a vector (P,), dtype of the gradients."""
        if combination.vector is not None:
            return (factor * combination.vector).to(self.dtype)
        return self._combine([factor * number for number in combination.factors], self.dtype)

    # -- details ---------------------------------------------------------------------------------

    def _chunks(self) -> Iterator[Tensor]:
        """Yield the gradients in float64, a few columns at a time, in memory that is reused."""
        if self._size <= self._width:
            if self._only_chunk is None:
                self._only_chunk = self._converted(self.rows, None)
            yield self._only_chunk
            return
        memory = None
        for pieces in self._pieces():
            if memory is not None and memory.shape[1] != len(pieces[0]):
                memory = None
            memory = self._converted(pieces, memory)
            yield memory

    def _row_chunks(self) -> Iterator[Sequence[Tensor]]:
        """Yield the same row by row; if all columns are one chunk, rows are converted on demand."""
        if self._only_rows is not None:
            yield self._only_rows
        elif self._size > self._width or self._scale is not None:
            yield from (chunk.unbind() for chunk in self._chunks())
        else:
            yield self._vectors.unbind() if isinstance(self._vectors, Tensor) else self._vectors

    def _pieces(self) -> Iterator[Tensor | tuple[Tensor, ...]]:
        """Split the columns, in the dtype of the gradients: (m, w), or m vectors (w,)."""
        if isinstance(self._vectors, Tensor):
            return iter(self._vectors.split(self._width, dim=1))
        return zip(*(vector.split(self._width) for vector in self._vectors), strict=True)

    def _converted(self, pieces: Tensor | Sequence[Tensor], memory: Tensor | None) -> Tensor:
        """Columns of the gradients in float64, (m, w), written to ``memory`` unless it is None."""
        if memory is None:
            shape = (len(pieces), len(pieces[0]))
            memory = torch.empty(shape, dtype=torch.float64, device=self.device)
        if isinstance(pieces, Tensor):
            memory.copy_(pieces)
        else:
            for row, piece in zip(memory.unbind(), pieces, strict=True):
                row.copy_(piece)
        return memory if self._scale is None else memory.div_(self._scale.unsqueeze(1))

    def _gram(self) -> list[list[float]]:
        """Inner products of the rows that `_chunks` yields, m rows of m numbers."""
        if not self.few:
            total = reduce(torch.add, (chunk @ chunk.T for chunk in self._chunks()))
            gram: list[list[float]] = total.tolist()
            return gram
        # A matrix product packs its operands; for so few rows that takes longer than it saves.
        count = len(self._vectors)
        gram = [[0.0] * count for _ in range(count)]
        places = self._places()
        for pieces in self._row_chunks():
            rows: list[Tensor] = []
            for i, piece in enumerate(pieces):
                rows.append(piece.double() if places is None else places[i].copy_(piece))
                # Row i first: it was just written and is in the cache.
                for j in range(i, -1, -1):
                    gram[i][j] += rows[i].dot(rows[j]).item()
        if self._size <= self._width and self._scale is None:
            self._only_rows = rows
        for i in range(count):
            for j in range(i):
                gram[j][i] = gram[i][j]
        return gram

    def _places(self) -> Sequence[Tensor] | None:
        """Memory for float64 copies of few gradients; None unless all are held and large."""
        entries = self._size * len(self._vectors)
        held = self._size <= self._width and self._scale is None
        if not held or self._size <= SMALL_SIZE or self.dtype == torch.float64:
            return None
        self._memory = take(entries)
        return self._memory[:entries].view(-1, self._size).unbind()

    def __del__(self) -> None:
        memory = getattr(self, "_memory", None)
        if memory is not None:
            give_back(memory)

    def _divided(self, gram: list[list[float]]) -> list[list[float]]:
        """Divide inner products by the lengths of both gradients: cosines."""
        # One division by a product of lengths, or two if that product underflows to zero.
        divisors = self._divisors
        if len(divisors) <= FEW:
            return [
                [
                    product / (divisor * other) if divisor * other else product / divisor / other
                    for product, other in zip(row, divisors, strict=True)
                ]
                for row, divisor in zip(gram, divisors, strict=True)
            ]
        divisor = np.array(divisors)
        cosines: list[list[float]] = (np.array(gram) / divisor / divisor[:, None]).tolist()
        return cosines

    def _projected(self, factors: list[float]) -> list[float]:
        """Products of the unit gradients with a combination of them, m numbers."""
        if len(factors) <= FEW:
            return few.products(self.angles, factors)
        products: list[float] = (np.array(self.angles) @ np.array(factors)).tolist()
        return products

    def _rescale(self) -> None:
        """Scale the largest entry of each row to 1, so that squares do not over- or underflow."""
        check_finite(self.rows)
        if not self._size:
            return
        largest = self.rows.abs().amax(1).double()
        self._scale = torch.where(largest > 0, largest, 1.0)
        self._only_chunk = self._only_rows = None

    def _combine(self, factors: list[float], dtype: torch.dtype) -> Tensor:
        """Combination of unit gradients as a vector (P,), computed in float64."""
        weights = [
            factor / divisor for factor, divisor in zip(factors, self._divisors, strict=True)
        ]
        if dtype == self.dtype and self._is_sum(weights):
            total = torch.add(self._vectors[0], self._vectors[1])
            for vector in self._vectors[2:]:
                total += vector
            return total
        if not self.few:
            row = torch.tensor(weights, dtype=torch.float64, device=self.device)
            parts = [(row @ chunk).to(dtype) for chunk in self._chunks()]
            return parts[0] if len(parts) == 1 else torch.cat(parts)
        if self._size <= self._width:
            return few.weighted(next(self._row_chunks()), weights, None).to(dtype)
        combined = torch.empty(self._size, dtype=dtype, device=self.device)
        memory = torch.empty(self._width, dtype=torch.float64, device=self.device)
        for rows, part in zip(self._row_chunks(), combined.split(self._width), strict=True):
            part.copy_(few.weighted(rows, weights, memory[: len(part)]))
        return combined

    def _is_sum(self, weights: list[float]) -> bool:
        """Return whether a combination is the plain sum of few gradients without conflict.

        No partial sum is then longer than the total, and rounding in their own dtype is harmless.
        """
        return (
            self.few
            and len(weights) > 1
            and self._scale is None
            and self.dtype.itemsize >= 4
            and all(weight == 1.0 for weight in weights)
            and min(map(min, self.angles)) >= 0
        )

    def _project(self, vector: Tensor) -> list[float]:
        """Products of the unit gradients with a vector (P,) float64."""
        pieces = zip(self._chunks(), vector.split(self._width), strict=True)
        products = reduce(torch.add, (chunk @ piece for chunk, piece in pieces)).tolist()
        return [product / length for product, length in zip(products, self._divisors, strict=True)]

    def _nothing(self) -> Combination:
        """Return the zero combination."""
        zero = [0.0] * len(self.lengths)
        return Combination(zero, zero, 0.0)

    def _singular(self, active: list[int], exact: bool) -> Singular:
        """Singular values of the unit gradients of k losses, without those that are rounding.

        Args:
            active: numbers of these k losses, whose gradients are not zero.
            exact: see :meth:`pseudo_inverse`.

        Returns:
            Left vectors (k, r), values (r,), and a function from r components along the right
            vectors to a vector (P,); or None if the rows are independent enough to combine them.
        """
        if not active:
            return np.zeros((0, 0)), np.zeros(0), None
        if not exact:
            gram = self.cosines
            if len(active) < len(gram):
                gram = gram[active][:, active]
            squares, left = with_cpu_fallback(eigenvectors, gram, [])
            if float(squares[0]) > GRAM_FLOOR * float(squares[-1]):
                return left.numpy(), np.sqrt(squares.numpy()), None
        # The Gram matrix U Uᵀ has lost half of the digits of small singular values. Uᵀ = Q T with
        # T (k, k): Tᵀ has U's left vectors and values, and U's right vectors in the basis Q.
        basis, triangle = torch.linalg.qr(self._units(active).T)
        left, values, right = with_cpu_fallback(thin_svd, triangle.T.cpu(), [])
        keep = values > self.rcond * values[0]
        rotation = right[keep].T

        def lifted(components: Tensor) -> Tensor:
            return basis @ (rotation @ components).to(basis.device)

        return left[:, keep].numpy(), values[keep].numpy(), lifted

    def _units(self, active: list[int]) -> Tensor:
        """Unit gradients of k losses, (k, P) float64: twice the memory of float32 gradients."""
        rows = torch.cat([chunk[active] for chunk in self._chunks()], dim=1)
        divisors = [self._divisors[i] for i in active]
        return rows / torch.tensor(divisors, dtype=torch.float64, device=rows.device).unsqueeze(1)
