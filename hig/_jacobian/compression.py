r"""Rows of the controls in place of those of the outputs, with the same step.

If the D outputs of a sample depend on the parameters through C < D controls of this sample alone,
:math:`J_i = S_i N_i` with :math:`S_i` (D, C) the Jacobian of the simulator and :math:`N_i` that of
the network. With :math:`S_i = Q_i R_i`, the columns of :math:`Q_i` orthonormal, the rows
:math:`R_i N_i = Q_i^T J_i` have the singular values of :math:`J_i` and its right singular vectors,
and :math:`Q_i` times a change of theirs is the change of all outputs.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from hig._jacobian.capture import ForwardPass
from hig._jacobian.controls import refusal
from hig._jacobian.exactness import UNITS, ExactnessMemory, Probe
from hig._torch.autograd_graph import reachable_nodes
from hig._torch.batched_vjp import BatchedVJP, output_cotangents
from hig._torch.memory import check_room
from hig.errors import out_of_memory

__all__ = ["ControlBlock", "Reduction", "control_jacobian", "control_products", "reduce_rows"]

# A product with S costs about as much as so many with its transpose.
OF_A_PRODUCT = 3


@dataclass(frozen=True)
class Reduction:
    """Rows with the same step as those of all outputs.

    Attributes:
        rows: (B, C), with the graph of the controls.
        directions: :math:`Q_i^T`, (B, C, D), in the dtype of the prediction.
    """

    rows: Tensor
    directions: Tensor


class ControlBlock:
    """Jacobian of a batch of predictions by the controls, block by block.

    Args:
        blocks: S, (B, D, C).
        sizes: the number of controls per sample in each tensor of them.
    """

    def __init__(self, blocks: Tensor, sizes: Sequence[int]):
        self._blocks, self._sizes = blocks, list(sizes)
        self.dtypes = {blocks.dtype}

    def row_squares(self) -> Tensor:
        """Return the squared norms of the rows, (B * D,) float64."""
        return self._blocks.double().square().sum(2).flatten()

    def vjp(self, weights: Tensor) -> Tensor:
        """Return Sᵀ w, one tensor of controls after the other: (B * D,) -> (B * C,), float64."""
        samples, outputs, _ = self._blocks.shape
        pulled = (weights.view(samples, 1, outputs) @ self._blocks.double()).squeeze(1)
        return torch.cat([part.flatten() for part in pulled.split(self._sizes, 1)])


def reduce_rows(
    forward: ForwardPass, backward: BatchedVJP, memory: ExactnessMemory
) -> tuple[Reduction | None, str]:
    """Return the rows of the controls, if the prediction depends on the parameters through few.

    Args:
        forward: the forward pass.
        backward: runs the backward passes.
        memory: remembers controls that were none; they are tried again seldom.

    Returns:
        The rows, None if there are none; and a note for the report, where controls were named that
        are none, or seemed to be some that are not.
    """
    prediction, controls = forward.prediction, [tensor for tensor, _ in forward.controls]
    key = prediction.shape[1:], *(tensor.shape[1:] for tensor in controls)
    memory.builds += 1
    if not forward.named and memory.skips(key, None):
        return None, ""
    reason = refusal(forward.controls, prediction, forward.parameters)
    if reason:
        memory.record_failure(key, None)
        return None, _note(reason) if forward.named else ""
    if memory.skips(key, None):
        return None, ""
    joined = [tensor.reshape(len(prediction), -1) for tensor in controls]
    size = _per_sample(controls, len(prediction))
    check_room(
        3 * 8 * prediction.numel() * size,
        prediction,
        f"the Jacobian of {prediction[0].numel()} outputs by {size} controls, for a batch of "
        f"{len(prediction)} samples,",
        "use a smaller batch",
    )
    blocks = None
    by_products = "products", *key
    if not memory.skips(by_products, None):
        blocks = _checked(control_products(prediction, controls, backward), prediction, controls)
        if blocks is None:
            memory.record_failure(by_products, None)
    if blocks is None:
        blocks = _checked(control_jacobian(prediction, controls, backward), prediction, controls)
    if blocks is None:
        memory.record_failure(key, None)
        return None, _note("samples influence one another")
    basis, triangle = torch.linalg.qr(blocks.double())
    directions = basis.mT.to(prediction.dtype)
    with torch.enable_grad():
        values = torch.cat([tensor.to(prediction.dtype) for tensor in joined], 1)
        change = (values - values.detach()).unsqueeze(2)
        outputs = directions @ prediction.detach().reshape(len(prediction), -1, 1)
        rows = outputs + triangle.to(prediction.dtype) @ change
    return Reduction(rows.squeeze(2), directions), ""


def _checked(blocks: Tensor | None, prediction: Tensor, controls: list[Tensor]) -> Tensor | None:
    """Return the derivatives (B, D, C) if a backward pass agrees with them, else None."""
    if blocks is None:
        return None
    block = ControlBlock(blocks, [tensor.numel() // len(prediction) for tensor in controls])
    (units,) = Probe(prediction, controls, [block]).units(
        [(block, list(range(len(controls))))], [UNITS]
    )
    return None if units is None else blocks


def control_jacobian(prediction: Tensor, controls: list[Tensor], backward: BatchedVJP) -> Tensor:
    """Return the derivative of each sample's outputs by its own controls, by D backward passes.

    Args:
        prediction: (B, ...), D outputs per sample.
        controls: C per sample together, in the graph of the prediction.
        backward: runs the backward passes.

    Returns:
        (B, D, C).
    """
    samples, outputs = len(prediction), prediction[0].numel()
    size = _per_sample(controls, samples)
    blocks = prediction.new_zeros((samples, outputs, size))
    passes = backward.gradients(
        prediction,
        controls,
        outputs,
        output_cotangents(prediction),
        samples * size * prediction.element_size(),
    )
    for selection, gradients in passes:
        parts = [
            tensor.new_zeros((selection.stop - selection.start, *tensor.shape))
            if gradient is None
            else gradient
            for gradient, tensor in zip(gradients, controls, strict=True)
        ]
        joined = torch.cat([part.reshape(len(part), samples, -1).to(blocks) for part in parts], 2)
        blocks[:, selection] = joined.transpose(0, 1)
    return blocks


def control_products(
    prediction: Tensor, controls: list[Tensor], backward: BatchedVJP
) -> Tensor | None:
    """Return the same by C products with the Jacobian of the simulator, by second derivatives.

    None where D backward passes cost less, or where the graph cannot be differentiated twice.
    """
    size = _per_sample(controls, len(prediction))
    if OF_A_PRODUCT * size > prediction[0].numel() or _is_rolled_out(prediction):
        return None
    # The gradient of the controls is linear in the cotangent, and its derivative by it is S.
    with torch.enable_grad():
        cotangent = torch.zeros_like(prediction, requires_grad=True)
        try:
            pulled = torch.autograd.grad(
                prediction, controls, cotangent, create_graph=True, materialize_grads=True
            )
            joined = torch.cat([part.reshape(len(prediction), -1) for part in pulled], 1)
            if not joined.requires_grad:
                return None
            products = BatchedVJP(backward.chunk, backward.batched, sizes=backward.sizes)
            blocks = prediction.new_zeros((len(prediction), prediction[0].numel(), size))
            passes = products.gradients(
                joined,
                [cotangent],
                size,
                output_cotangents(joined),
                prediction.numel() * prediction.element_size(),
            )
            for selection, (gradient,) in passes:
                if gradient is None:
                    return None
                columns = gradient.reshape(len(gradient), len(prediction), -1)
                blocks[:, :, selection] = columns.permute(1, 2, 0)
        except RuntimeError as error:
            if out_of_memory(error):
                raise
            return None
    return blocks


def _per_sample(tensors: list[Tensor], samples: int) -> int:
    return sum(tensor.numel() for tensor in tensors) // samples


def _is_rolled_out(prediction: Tensor) -> bool:
    """Return whether `hig.rollout` runs the simulator, whose backward passes cost next to none."""
    return any(node.name() == "_RolloutBackward" for node in reachable_nodes(prediction))


def _note(reason: str) -> str:
    return f"rows of all outputs, not of the controls: {reason}"
