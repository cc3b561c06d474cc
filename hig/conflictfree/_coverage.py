"""Coverage of a gradient vector: the parameters that its entries belong to, if some were skipped.

Two heads of the same size give vectors of the same length that belong to different parameters;
only a note on the vector can distinguish them.
"""

from collections.abc import Sequence

from torch import Tensor

__all__ = ["Coverage", "check_coverage", "coverage_of", "note_coverage"]

#: For each parameter of a network, whether the vector has its entries.
Coverage = tuple[bool, ...]

# An attribute of the tensor: results computed from it do not inherit the note.
_ATTRIBUTE = "_hig_covers"


def note_coverage(vector: Tensor, coverage: Coverage | None) -> Tensor:
    """Note on a vector which parameters it has entries for; None if that is not known."""
    if coverage is not None:
        setattr(vector, _ATTRIBUTE, coverage)
    return vector


def coverage_of(vector: Tensor) -> Coverage | None:
    """Return the note on a vector; None if there is none, or the vector has all entries."""
    coverage: Coverage | None = getattr(vector, _ATTRIBUTE, None)
    return coverage


def check_coverage(vectors: Sequence[Tensor], earlier: Coverage | None = None) -> Coverage | None:
    """Return the parameters that all vectors of one length cover; None if one has no note.

    Raises a ValueError if two of them have entries for different parameters.
    """
    coverages = [coverage_of(vector) for vector in vectors]
    noted = [coverage for coverage in (earlier, *coverages) if coverage is not None]
    for other in noted[1:]:
        if other != noted[0]:
            pairs = zip(noted[0], other, strict=False)
            number = next((i for i, (one, two) in enumerate(pairs) if one != two), len(other))
            raise ValueError(
                f"the gradients have one length and belong to different parameters: number {number}"
                " of the network is in one of them alone; where only some losses reach a "
                "parameter, use get_gradient_vector(..., none_grad_mode='zero')"
            )
    return noted[0] if noted and None not in coverages else None
