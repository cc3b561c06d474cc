"""The slow, obvious routes that every fast one is compared with."""

import torch
from torch import Tensor


def textbook_jacobian(prediction: Tensor, parameters) -> Tensor:
    """(n, P) in the dtype of the prediction: one backward pass per output, nothing shared.

    A complex parameter has two columns for each entry.
    """
    parameters, rows = list(parameters), []
    for output in prediction.flatten():
        gradients = torch.autograd.grad(
            output, parameters, retain_graph=True, allow_unused=True, materialize_grads=True
        )
        real = [torch.view_as_real(g) if g.is_complex() else g for g in gradients]
        rows.append(torch.cat([gradient.flatten() for gradient in real]))
    return torch.stack(rows)


def textbook_power(jacobian: Tensor, gradient: Tensor, kappa: float, rcond: float) -> Tensor:
    """V S^kappa Uᵀ g by a thin SVD, strictly truncated."""
    left, values, right = torch.linalg.svd(jacobian, full_matrices=False)
    keep = values > rcond * values.max()
    return right[keep].T @ (values[keep] ** kappa * (left[:, keep].T @ gradient))


def textbook_damped(jacobian: Tensor, gradient: Tensor, damping: float) -> Tensor:
    """Jᵀ (J Jᵀ + damping)⁻¹ g."""
    gram = jacobian @ jacobian.T
    shifted = gram + damping * torch.eye(len(gram), dtype=gram.dtype)
    return jacobian.T @ torch.linalg.solve(shifted, gradient)


def relative_error(found: Tensor, expected: Tensor) -> float:
    """Norm of the difference over the norm of what was expected."""
    return float((found - expected).norm() / expected.norm().clamp_min(1e-300))


def flat(tensors) -> Tensor:
    """All tensors as one vector."""
    return torch.cat([tensor.detach().flatten() for tensor in tensors])


def step_of(optimizer, closure) -> Tensor:
    """Take a step; return the change of all parameters, as one vector."""
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    before = flat(parameters).clone()
    optimizer.step(closure)
    return flat(parameters) - before
