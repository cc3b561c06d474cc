"""Lengths of vectors and angles between them."""

import warnings

import torch
from torch import Tensor

from hig.arguments import check_same_device, check_tensor

__all__ = ["estimate_conflict", "get_cos_similarity", "transfer_coef_double", "unit_vector"]


def unit_vector(vector: Tensor, warn_zero: bool = False) -> Tensor:
    """Return the vector scaled to length 1, without a graph.

    Args:
        vector: (P,), of any scale; of another shape, its length is that of all entries.
        warn_zero: warn if the vector is zero.

    Returns:
        Shape and dtype of ``vector``; zero for a zero vector.

    Raises:
        TypeError: it is not a real floating-point tensor.
    """
    check_tensor(vector, "vector")
    vector = vector.detach()
    unit = _units(vector.reshape(1, -1)).reshape(vector.shape)
    if warn_zero and not bool(unit.any()):
        warnings.warn("a zero vector has no direction and stays zero", stacklevel=2)
    return unit.to(vector.dtype)


def get_cos_similarity(vector1: Tensor, vector2: Tensor) -> Tensor:
    """Cosine of the angle between two vectors.

    Args:
        vector1: (P,).
        vector2: (P,).

    Returns:
        A scalar, dtype of ``vector1``; zero if either vector is zero.

    Raises:
        TypeError: one of them is not a real floating-point tensor.
        ValueError: they are not two vectors of one length on one device.
    """
    check_tensor(vector1, "vector1", 1)
    check_tensor(vector2, "vector2", 1)
    check_same_device({"vector1": vector1, "vector2": vector2})
    if len(vector1) != len(vector2):
        raise ValueError(
            f"vector1 and vector2 must have one length, got {len(vector1)} and {len(vector2)}; "
            "take gradients by the same parameters"
        )
    units = [_units(vector.detach().unsqueeze(0))[0] for vector in (vector1, vector2)]
    return torch.dot(*units).to(vector1.dtype)


def estimate_conflict(gradients: Tensor) -> Tensor:
    """Cosines between gradients and their sum; negative if the plain sum increases a loss.

    Args:
        gradients: (m, P).

    Returns:
        (m,), dtype of ``gradients``; zero for a zero gradient.

    Raises:
        TypeError: they are not a real floating-point tensor.
        ValueError: they do not have two axes.
    """
    check_tensor(gradients, "gradients", 2)
    rows = gradients.detach().double()
    total = _units(rows.sum(0, keepdim=True))[0]
    return (_units(rows) @ total).to(gradients.dtype)


def transfer_coef_double(
    weights: Tensor,
    unit_vec_1: Tensor,
    unit_vec_2: Tensor,
    or_unit_vec_1: Tensor,
    or_unit_vec_2: Tensor,
) -> tuple[Tensor, int]:
    r"""Coefficients of two orthogonal components for a given ratio of two cosines.

    :math:`d = c_1 o_1 + c_2 o_2` has :math:`(d \cdot u_1) / (d \cdot u_2) = w_1 / w_2`, where
    :math:`o_1` is orthogonal to :math:`u_1`, and :math:`o_2` to :math:`u_2`.

    Args:
        weights: :math:`w`, (2,).
        unit_vec_1: :math:`u_1`, (P,).
        unit_vec_2: :math:`u_2`, (P,).
        or_unit_vec_1: :math:`o_1`, (P,): component of the second gradient.
        or_unit_vec_2: :math:`o_2`, (P,): component of the first gradient.

    Returns:
        :math:`c_1`, a scalar, and :math:`c_2 = 1`.
    """
    along_1 = torch.dot(or_unit_vec_2, unit_vec_1)
    along_2 = torch.dot(or_unit_vec_1, unit_vec_2)
    return weights[1] / weights[0] * along_1 / along_2, 1


def _units(rows: Tensor) -> Tensor:
    """Rows scaled to length 1 in float64; a zero row stays zero. Does not synchronise a GPU."""
    rows = rows.double()
    if not rows.numel():
        return rows
    # Scale the largest entry to 1 first: squares of very large or small entries over- or underflow.
    largest = rows.abs().amax(1, keepdim=True)
    rows = rows / torch.where(largest > 0, largest, 1.0)
    lengths = torch.linalg.vector_norm(rows, dim=1, keepdim=True)
    return rows / torch.where(lengths > 0, lengths, 1.0)
