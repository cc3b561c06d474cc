r"""Kronecker factors of one layer, and powers of their product.

For a layer ``z = W a + b`` the block of :math:`J^T J` is approximated by :math:`S \otimes A`, with
A the second moment of the inputs and S that of the gradients of the outputs: Martens, Grosse,
*Optimizing Neural Networks with Kronecker-factored Approximate Curvature*, ICML 2015, arXiv
1503.05671. If a weight is used at several positions of a sample, as in convolutions, these are
treated as independent: Grosse, Martens, ICML 2016, arXiv 1602.01573.

A weight gradient is a matrix G (out, in), and vec stacks its rows: index (o, i) is o * in + i, so
that :math:`(S \otimes A)\, \mathrm{vec}\, G = \mathrm{vec}(S\, G\, A^T)`, with the outputs first.
A grouped convolution has one such matrix per group; all arrays here have the groups as first axis.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from hig._torch.linalg import eigenvectors, with_cpu_fallback

__all__ = ["DampedPower", "damped_power", "input_factor", "output_factor"]


def input_factor(patches: Tensor, bias: bool) -> Tensor:
    """Second moment A of the inputs of a layer, mean over samples and uses.

    Of patches (B, groups, U, in), the inputs of the weight: (groups, in, in), in + 1 with a bias,
    whose input is 1.
    """
    if bias:  # as last input: the bias is the last column of the weight
        patches = torch.cat([patches, torch.ones_like(patches[..., :1])], -1)
    # (groups, B U, in): which rows belong to one sample does not matter for a second moment.
    rows = patches.transpose(0, 1).flatten(1, 2)
    return rows.mT @ rows / max(1, rows.shape[1])


def output_factor(deltas: Tensor) -> Tensor:
    """Second moment S of the gradients of a layer's outputs, sum over samples and uses.

    Of gradients of a random projection of the outputs, (B, groups, U, out): (groups, out, out).

    JᵀJ is a sum over samples and uses. With independent inputs and gradients, the sum of the
    products is the sum of one factor times the mean of the other: A is the mean.
    """
    rows = deltas.transpose(0, 1).flatten(1, 2)
    return rows.mT @ rows


@dataclass(frozen=True)
class DampedPower:
    """Power of the damped Kronecker product of two factors, in their eigenbases.

    Attributes:
        outputs: eigenvectors of S in columns, (groups, out, out).
        inputs: eigenvectors of A in columns, (groups, in, in).
        scale: powers of the damped eigenvalues, (groups, out, in).
    """

    outputs: Tensor
    inputs: Tensor
    scale: Tensor

    def __call__(self, matrix: Tensor) -> Tensor:
        """Apply the power to a stack of matrices (groups, out, in)."""
        # The eigenvectors of S ⊗ A are all products of one of S and one of A: coordinates of the
        # matrix in that basis are Q_Sᵀ G Q_A, and the (out * in)² matrix is never formed.
        inside = self.outputs.mT @ matrix @ self.inputs
        return self.outputs @ (inside * self.scale) @ self.inputs.mT


def damped_power(outputs: Tensor, inputs: Tensor, power: float, damping: float) -> DampedPower:
    r"""Decompose :math:`(S \otimes A + \lambda m)^{-p}`, m the mean eigenvalue of the product.

    This is Tikhonov damping of the product itself. Damping each factor, with balanced trace norms
    (section 6.3 of the K-FAC paper), approximates it by two inverses; given the eigenbases, the
    exact form costs nothing more, and it trained better on Poisson.

    The decomposition is in float64, which is cheap compared to a training step.

    Args:
        outputs: S, (groups, out, out), symmetric.
        inputs: A, (groups, in, in), symmetric.
        power: p.
        damping: λ > 0.

    Returns:
        The power in the dtype of ``inputs``; zero for a product that is zero.

    Raises:
        DecompositionError: if a decomposition does not converge.
    """
    output_values, output_vectors = with_cpu_fallback(eigenvectors, outputs.double(), [])
    input_values, input_vectors = with_cpu_fallback(eigenvectors, inputs.double(), [])
    # (groups, out, in): eigenvalues of S ⊗ A are all products of one of S and one of A, in the
    # layout of the weight. Negative ones are rounding errors of zero.
    products = output_values.clamp_min(0)[:, :, None] * input_values.clamp_min(0)[:, None, :]
    damped = products + damping * products.mean((1, 2), keepdim=True)
    scale = torch.where(damped > 0, damped, 1).pow(-power) * (damped > 0)
    return DampedPower(*(part.to(inputs) for part in (output_vectors, input_vectors, scale)))
