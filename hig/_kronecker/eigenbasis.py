r"""Adam in the eigenbasis of the Kronecker factors: basis, second moments and directions.

Vyas et al., *SOAP: Improving and Stabilizing Shampoo using Adam*, ICLR 2025, arXiv 2409.11321, run
Adam in the eigenbasis of the factors of Shampoo, which are moments of the gradient. Here the basis
is that of :math:`S \otimes A`: S knows how the simulator answers to each output of a layer.

If the residuals are independent of the derivatives of the outputs, the second moments v of the
gradient in that basis are proportional to the eigenvalues :math:`\lambda` of :math:`S \otimes A`. A
power :math:`\lambda^{-p}` may then be shared, :math:`v^{-s} \lambda^{s - p}`: v follows a spectrum
that moves and knows of noise, :math:`\lambda` needs no gradients to know of weak directions. The
share s = 1/4 trained best: s = 1/2, SOAP's, ended higher on five of six problems, level on one.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from hig._kronecker.adam import first_squares
from hig.errors import DecompositionError

__all__ = ["EigenbasisSteps", "eigenbasis_steps", "followed_basis", "refresh_eigenbasis"]

# Added to a factor, in units of its trace. Directions far below it are not told apart in one step
# of the iteration. In return the basis depends smoothly on the factor: rounding errors, as of a sum
# over process ranks in another order, change it by 1e4 times as much, also where eigenvalues are
# equal or zero and eigenvectors are arbitrary.
_SHIFT = 1e-4

# Iterations from the basis of the parameters to the first eigenbasis.
_FIRST = 8

# Exponent s of second moments, see above.
_SHARE = 0.25

# Least root of a second moment, in units of their norm in its layer. Coordinates of the gradient
# that are zero but for rounding would otherwise move as far as the others.
_FLOOR = 1e-6


def followed_basis(factor: Tensor, basis: Tensor | None) -> Tensor:
    """Return an approximate eigenbasis of a factor, from that of the factor before.

    One step of orthogonal iteration, as in SOAP; eigenvalues descend as it converges.

    Args:
        factor: (groups, n, n), symmetric, without negative eigenvalues.
        basis: (groups, n, n), orthonormal columns; None for a first basis, by several steps from
            the basis of the parameters.

    Returns:
        (groups, n, n); unchanged but for signs if the factor is zero.

    Raises:
        DecompositionError: a QR decomposition fails.
    """
    steps = 1
    if basis is None:
        size = factor.shape[-1]
        basis, steps = torch.eye(size, dtype=factor.dtype, device=factor.device), _FIRST
        basis = basis.expand_as(factor)
    # The trace, as the squares of a norm may be below the numbers of float32.
    trace = factor.diagonal(dim1=1, dim2=2).sum(1)[:, None, None]
    factor = factor / torch.where(trace > 0, trace, 1)
    for _ in range(steps):
        product = factor @ basis
        # A weak direction before a strong one would stay there until rounding errors have grown.
        growth = (product * basis).sum(1).clamp_min_(0).add_(_SHIFT)
        # Up to a factor of two, as ties may not be broken by rounding; not at powers of two, where
        # symmetric factors have theirs.
        order = (1.37 * growth).frexp().exponent.argsort(dim=-1, descending=True, stable=True)
        columns = product.add_(basis, alpha=_SHIFT).gather(2, order[:, None].expand_as(product))
        basis = _orthonormal(columns)
    return basis


def _orthonormal(columns: Tensor) -> Tensor:
    try:
        return torch.linalg.qr(columns).Q
    except torch.linalg.LinAlgError as error:
        raise DecompositionError(
            f"the QR decomposition of a {tuple(columns.shape)} matrix failed ({error}); try "
            "another batch, a smaller lr, or graft='layer'"
        ) from error


def refresh_eigenbasis(
    state: dict[str, Any], outputs: Tensor, inputs: Tensor, power: float, damping: float
) -> None:
    r"""Let bases, second moments and scale of a layer follow its factors.

    Args:
        state: state of the layer; ``output_basis``, ``input_basis`` and ``scale`` are replaced, and
            ``moment``, if there is one.
        outputs: S, (groups, out, out).
        inputs: A, (groups, in, in).
        power: p; the scale has the exponent s - p.
        damping: added to the eigenvalues of the product, in units of their mean.
    """
    output_basis = followed_basis(outputs, state.get("output_basis"))
    input_basis = followed_basis(inputs, state.get("input_basis"))
    if "moment" in state:
        # Coordinates that were uncorrelated with moments v have the moments U² v W² in the new
        # basis. Moments that were kept as they are would belong to other directions.
        left = (output_basis.mT @ state["output_basis"]).square()
        right = (state["input_basis"].mT @ input_basis).square()
        state["moment"] = left @ state["moment"] @ right
    # In float64, as products of small factors may be below the numbers of float32.
    values = [_values(*pair).double() for pair in ((outputs, output_basis), (inputs, input_basis))]
    products = values[0][:, :, None] * values[1][:, None, :]
    damped = products + damping * products.mean((1, 2), keepdim=True)
    scale = torch.where(damped > 0, damped, 1).pow(_SHARE - power) * (damped > 0)
    state["output_basis"], state["input_basis"] = output_basis, input_basis
    state["scale"] = scale.to(inputs)


def _values(factor: Tensor, basis: Tensor) -> Tensor:
    """Return qᵀ F q of all columns q, (groups, n); negative ones are rounding errors of zero."""
    return (factor @ basis).mul_(basis).sum(1).clamp_min_(0)


class EigenbasisSteps(NamedTuple):
    """Steps of layers before grafting.

    Attributes:
        directions: of each layer (groups, out, in), in the basis of the parameters.
        norms: norm of each direction, scalars.
        adam_norms: norm of each layer's step of Adam in the eigenbasis, without the further power.
    """

    directions: list[Tensor]
    norms: list[Tensor]
    adam_norms: list[Tensor]


def eigenbasis_steps(
    states: Sequence[dict[str, Any]],
    columns: Sequence[Sequence[Tensor]],
    beta: float,
    eps: Sequence[float],
) -> EigenbasisSteps:
    """Update the second moments of layers and return their steps.

    Args:
        states: state of each layer, with ``step``, the number of gradients so far.
        columns: per layer the columns (groups, out, ...) of the gradient, then those of the running
            mean of the gradients, bias corrected; together of shape (groups, out, 2 in).
        beta: decay of the second moments.
        eps: as in Adam, added to the roots of the second moments, of each layer.
    """
    if not states:
        return EigenbasisSteps([], [], [])
    pairs = [_rotated(state, both) for state, both in zip(states, columns, strict=True)]
    gradients, means = (list(matrices) for matrices in zip(*pairs, strict=True))
    _update_moments(states, gradients, means, beta)
    roots = list(torch._foreach_sqrt([state["moment"] for state in states]))
    # The correction of the moments' bias is a factor of the layer, which grafting would remove: it
    # is that of eps and of the norm alone.
    corrections = [(1 - beta ** state["step"]) ** 0.5 for state in states]
    torch._foreach_add_(roots, torch._foreach_norm(roots), alpha=_FLOOR)
    torch._foreach_add_(roots, [e * c for e, c in zip(eps, corrections, strict=True)])
    adam_norms = list(torch._foreach_norm(torch._foreach_div(means, roots)))
    torch._foreach_mul_(adam_norms, corrections)
    torch._foreach_sqrt_(roots)
    torch._foreach_div_(means, roots)
    torch._foreach_mul_(means, [state["scale"] for state in states])
    norms = list(torch._foreach_norm(means))
    directions = [
        state["output_basis"] @ inside @ state["input_basis"].mT
        for state, inside in zip(states, means, strict=True)
    ]
    return EigenbasisSteps(directions, norms, adam_norms)


def _rotated(state: dict[str, Any], columns: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Return Q_Sᵀ G Q_A of gradient and mean, in two products for both."""
    groups, fan_out, fan_in = state["scale"].shape
    inside = state["output_basis"].mT @ torch.cat(list(columns), -1)
    # Row o holds row o of the gradient, then that of the mean: as (2 out) rows in one product.
    inside = inside.view(groups, 2 * fan_out, fan_in) @ state["input_basis"]
    both = inside.view(groups, fan_out, 2, fan_in)
    return both[:, :, 0], both[:, :, 1]


def _update_moments(
    states: Sequence[dict[str, Any]],
    gradients: Sequence[Tensor],
    means: Sequence[Tensor],
    beta: float,
) -> None:
    """Update running means of squares of gradients in the eigenbasis."""
    known = [number for number, state in enumerate(states) if "moment" in state]
    if known:
        moments, seen = [states[n]["moment"] for n in known], [gradients[n] for n in known]
        torch._foreach_mul_(moments, beta)
        torch._foreach_addcmul_(moments, seen, seen, 1 - beta)
    for state, gradient, mean in zip(states, gradients, means, strict=True):
        if "moment" not in state:
            state["moment"] = first_squares(gradient, mean, beta, state["step"])
            state.pop("exp_avg_sq", None)  # of steps without factors
