"""Half-inverse of an explicit Jacobian."""

from typing import Literal

import torch
from torch import Tensor

from hig._jacobian.blocks import DenseBlock, JointJacobian
from hig._spectral.decomposition import Decomposition, check_method, choose_route, decompose
from hig._spectral.filters import HalfInverse
from hig._spectral.lanczos import Krylov, Lanczos
from hig._torch.threads import on_fitting_threads
from hig.arguments import check_dense, check_same_device
from hig.errors import NonFiniteError

__all__ = ["half_inverse"]


@on_fitting_threads
def half_inverse(
    jacobian: Tensor,
    loss_gradient: Tensor,
    kappa: float = -0.5,
    rcond: float | Literal["auto"] = 1e-6,
    method: str | Lanczos = "auto",
) -> Tensor:
    r"""Apply a truncated power of a Jacobian to a gradient: :math:`J^\kappa g = V S^\kappa U^T g`.

    Schnell, Holl, Thuerey, ICLR 2022, arXiv 2203.10131. A step is ``theta -= lr * direction``.

    Args:
        jacobian: J, (n, P), floating point.
        loss_gradient: g, (n,): gradient of the loss with respect to the n outputs.
        kappa: exponent in [-1, 1]; -1/2 is the half-inverse, -1 Gauss-Newton, 1 gradient descent.
        rcond: singular values ``s <= rcond * s_max`` contribute nothing; in [0, 1), or "auto" for
            a cut-off just above the rounding of the dtype of ``jacobian``.
        method: "gram" (float64 Gram matrix of the smaller side), "svd" (float64 singular value
            decomposition of J), or "auto": the first, unless J is float64, not too large, and
            ``rcond`` is below the resolution of a Gram matrix. "lanczos" or a :class:`hig.Lanczos`
            approximates from products with J, for little more steps than the rank.

    Returns:
        The direction, (P,), dtype and device of ``jacobian``; zero for an all-zero Jacobian.

    Raises:
        NonFiniteError: if an entry of ``jacobian`` or ``loss_gradient`` is NaN or infinite.
        TypeError: if ``jacobian`` is not a dense real floating-point tensor, ``loss_gradient`` is
            complex, or ``kappa`` or ``rcond`` is not a number.
        ValueError: if shapes or devices do not match or an argument lies outside its range.
    """
    filter = HalfInverse(kappa=kappa, rcond=rcond)
    _check(jacobian, loss_gradient)
    n, columns = jacobian.shape
    check_method(method)
    route = choose_route((n, columns), jacobian.dtype, filter, method)
    if not jacobian.numel():
        return jacobian.new_zeros(jacobian.shape[1])
    with torch.no_grad():
        joint = JointJacobian([DenseBlock(jacobian)], len(jacobian), 1, like=jacobian)
        if route == "lanczos":
            settings = method if isinstance(method, Lanczos) else Lanczos()
            decomposition: Decomposition = Krylov(joint, jacobian.dtype, settings)
            filter = filter.resolved(None, jacobian.dtype)
        else:
            forms = {"row_gram": joint.gram, "column_gram": joint.normal, "svd": jacobian.double}
            decomposition = decompose(joint, forms[route](), route, filter)
            filter = filter.resolved(decomposition.singular_values, jacobian.dtype)
        direction, _ = decomposition.step(filter, loss_gradient.double())
    return direction.to(jacobian.dtype)


def _check(jacobian: Tensor, loss_gradient: Tensor) -> None:
    for name, tensor in (("jacobian", jacobian), ("loss_gradient", loss_gradient)):
        if not isinstance(tensor, Tensor):
            raise TypeError(
                f"{name} must be a tensor, got {type(tensor).__name__}; wrap it: torch.as_tensor"
            )
        check_dense(tensor, name)
    if not jacobian.is_floating_point():
        raise TypeError(
            f"jacobian must be real floating point, got {jacobian.dtype}; for complex outputs let "
            "real and imaginary parts be separate rows (torch.view_as_real)"
        )
    if loss_gradient.is_complex():
        raise TypeError(
            f"loss_gradient must be real, got {loss_gradient.dtype}; differentiate the loss with "
            "respect to real and imaginary parts (torch.view_as_real)"
        )
    if jacobian.ndim != 2 or loss_gradient.shape != jacobian.shape[:1]:
        raise ValueError(
            f"jacobian must be (n, P) and loss_gradient (n,), got {tuple(jacobian.shape)} and "
            f"{tuple(loss_gradient.shape)}; flatten the outputs of all samples into n rows"
        )
    check_same_device({"jacobian": jacobian, "loss_gradient": loss_gradient})
    for name, tensor in (("jacobian", jacobian), ("loss_gradient", loss_gradient)):
        bad = ~torch.isfinite(tensor)
        if bad.any():
            rows = bad.reshape(len(tensor), -1).any(1).nonzero().flatten().tolist()
            raise NonFiniteError(
                f"{name} has {int(bad.sum())} NaN or infinite entries, in rows {rows[:8]}"
                f"{'...' if len(rows) > 8 else ''}; check the simulator at these outputs"
            )
