r"""The gradients of several losses, reduced to the few numbers that combining them takes.

Every operator here returns a linear combination of the gradients, and which one depends on their
lengths and on the cosines between them alone: m + m² numbers, whatever the number of parameters.
These are computed in float64, once, and brought to the CPU; what follows is arithmetic on an
(m, m) matrix and one product at the end.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import reduce

import torch
from torch import Tensor

from hig._converging import converging, eigenvectors, thin_svd
from hig.arguments import check_dense, check_same_device, check_tensor
from hig.errors import NonFiniteError, described

__all__ = ["Combination", "GradientMatrix", "as_matrix", "check_finite"]

# Left vectors, values, and what makes a vector of components along the right vectors.
Singular = tuple[Tensor, Tensor, Callable[[Tensor], Tensor] | None]

# Entries that are held in float64 at one time.
CHUNK_ENTRIES = 2**22
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
        rows: the gradients, (m, P), as given.
        norms: their lengths, (m,) float64 on the CPU.
        cosines: between any two, (m, m) float64 on the CPU; zero for a zero gradient.
        rcond: singular values of the unit rows up to this, relative to the largest, are rounding
            errors of the gradients. Rounding moves a row by less than eps of its length, however
            long it is, so P does not enter.

    Raises:
        NonFiniteError: a gradient holds NaN or Inf; the text names its loss.
        TypeError: the gradients are not real floating-point tensors.
        ValueError: they do not form an (m, P) matrix with m > 0.
    """

    def __init__(self, gradients: Tensor | Sequence[Tensor]):
        self.rows = as_matrix(gradients)
        self.rcond = 8 * len(self.rows) * torch.finfo(self.rows.dtype).eps
        self._width = max(1, CHUNK_ENTRIES // len(self.rows))
        self._only_chunk = self.rows.double() if self.rows.shape[1] <= self._width else None
        self._scale: Tensor | None = None
        gram = self._gram()
        squares = gram.diagonal()
        exact = self.rows.dtype != torch.float64  # no square of a shorter type leaves the range
        if not _in_range(squares, exact):
            self._rescale()
            gram = self._gram()
            squares = gram.diagonal()
        lengths = squares.sqrt()
        self.norms = lengths if self._scale is None else lengths * self._scale.cpu()
        # Lengths of the rows that `_chunks` yields; 1 for a zero row.
        self._lengths = torch.where(lengths > 0, lengths, 1.0)
        self.cosines = gram / self._lengths / self._lengths.unsqueeze(1)

    def combination(self, coefficients: Tensor) -> Combination:
        """The combination of unit gradients with given coefficients, (m,) float64 on the CPU."""
        projections = self.cosines @ coefficients
        square = float(coefficients @ projections)
        # A Gram matrix cannot tell how much is left where nearly everything has cancelled.
        if square > GRAM_FLOOR * float(coefficients.abs().sum()) ** 2:
            return Combination(coefficients, projections, square**0.5)
        vector = self._combine(coefficients)
        norm = float(vector.norm())
        if norm <= self.rcond * float(coefficients.abs().max()):
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
            return (factor * combination.vector).to(self.rows.dtype)
        return self._combine(factor * combination.coefficients).to(self.rows.dtype)

    # -- details ---------------------------------------------------------------------------------

    def _chunks(self) -> Iterator[Tensor]:
        """The gradients in float64, a few columns at a time."""
        if self._only_chunk is not None:
            yield self._only_chunk
            return
        for chunk in self.rows.split(self._width, dim=1):
            chunk = chunk.double()
            yield chunk if self._scale is None else chunk / self._scale.unsqueeze(1)

    def _gram(self) -> Tensor:
        return reduce(torch.add, (chunk @ chunk.T for chunk in self._chunks())).cpu()

    def _rescale(self) -> None:
        """Bring the largest entry of each row to 1, so that its square exists."""
        check_finite(self.rows)
        if not self.rows.numel():
            return
        largest = self.rows.abs().amax(1).double()
        self._scale = torch.where(largest > 0, largest, 1.0)
        if self._only_chunk is not None:
            self._only_chunk = self._only_chunk / self._scale.unsqueeze(1)

    def _combine(self, coefficients: Tensor) -> Tensor:
        weights = (coefficients / self._lengths).to(self.rows.device)
        parts = [weights @ chunk for chunk in self._chunks()]
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    def _project(self, vector: Tensor) -> Tensor:
        """Products of the unit gradients with a vector (P,) float64."""
        pieces = vector.split(self._width)
        products = sum(c @ p for c, p in zip(self._chunks(), pieces, strict=True))
        return products.cpu() / self._lengths

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
        active = active.to(self.rows.device)
        rows = torch.cat([chunk[active] for chunk in self._chunks()], dim=1)
        return rows / self._lengths[active.cpu()].to(rows.device).unsqueeze(1)


def check_finite(rows: Tensor, losses: Sequence[int] | None = None) -> None:
    """Raise if a gradient is not finite.

    Args:
        rows: (m, P).
        losses: numbers of the losses whose gradients these are; in order if None.

    Raises:
        NonFiniteError: with the numbers of the losses.
    """
    # One number tells of the usual case; a finite matrix may still have a sum that overflows.
    if bool(torch.isfinite(rows.sum())):
        return
    bad = (~torch.isfinite(rows)).sum(1).tolist()
    numbers = range(len(rows)) if losses is None else losses
    found = [f"{number} ({n} entries)" for number, n in zip(numbers, bad, strict=True) if n]
    if found:
        raise NonFiniteError(
            f"the gradient of loss {', '.join(found)} of {rows.shape[1]} holds NaN or Inf; "
            "nothing has been changed; check this loss on this batch, or take a smaller step"
        )


def as_matrix(gradients: Tensor | Sequence[Tensor]) -> Tensor:
    """Gradients as one matrix (m, P), without a graph.

    Args:
        gradients: (m, P), or a sequence of m vectors (P,).

    Raises:
        TypeError: they are not real floating-point tensors.
        ValueError: they do not form a matrix with m > 0.
    """
    if not isinstance(gradients, Tensor):
        if not isinstance(gradients, Iterable):
            raise TypeError(
                f"gradients must be a matrix (m, P) or m vectors, got {described(gradients)}; "
                "loss_gradients(losses, parameters) makes one"
            )
        gradients = list(gradients)
        for number, gradient in enumerate(gradients):
            check_tensor(gradient, f"the gradient of loss {number}")
        check_same_device({f"gradient {i}": gradient for i, gradient in enumerate(gradients)})
        shapes = {tuple(gradient.shape) for gradient in gradients}
        if len(shapes) > 1:
            raise ValueError(
                f"gradients must have the same shape, got {sorted(shapes)}; where only some "
                "losses reach a parameter, use get_gradient_vector(..., none_grad_mode='zero')"
            )
        if shapes:
            gradients = torch.stack(gradients)
    if not isinstance(gradients, Tensor) or gradients.ndim != 2 or not len(gradients):
        found = tuple(gradients.shape) if isinstance(gradients, Tensor) else "no gradients"
        raise ValueError(
            f"gradients must be a matrix (m, P) with one row per loss, got {found}; stack the "
            "flattened gradients of at least one loss"
        )
    if not gradients.is_floating_point():
        raise TypeError(
            f"gradients must be real floating point, got {gradients.dtype}; for complex "
            "parameters use their real view (torch.view_as_real)"
        )
    check_dense(gradients, "gradients")
    return gradients.detach()


def _length(few: Tensor) -> float:
    """Length of a vector of few numbers; faster than a call of torch."""
    return math.hypot(*few.tolist())


def _in_range(squares: Tensor, exact: bool) -> bool:
    """Whether squared lengths are finite, and lost no digits to underflow."""
    return all(
        (square > SMALLEST_SQUARE or (exact and square == 0)) and square < float("inf")
        for square in squares.tolist()
    )
