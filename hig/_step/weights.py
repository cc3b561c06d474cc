"""Weights of samples and outputs, checked."""

import torch
from torch import Tensor

from hig.errors import described

__all__ = ["checked_weights"]


def checked_weights(weights: object, prediction: Tensor, gradient: Tensor) -> Tensor:
    """Return weights of samples or outputs in the shape of the prediction, in its dtype.

    Args:
        weights: (B,) or of any shape that broadcasts to that of the prediction.
        prediction: (B, ...).
        gradient: of the loss, same shape.

    Raises:
        TypeError: they are no real tensor.
        ValueError: they are negative, not finite or of another shape, or the loss depends on
            outputs of weight 0.
    """
    if not isinstance(weights, Tensor) or weights.is_complex():
        raise TypeError(
            f"weights must be a real tensor (batch,) or (batch, ...), got {described(weights)}"
        )
    shape, samples = prediction.shape, len(prediction)
    of_samples = weights.ndim == 1 and len(weights) == samples
    shaped = weights.view(-1, *[1] * (prediction.ndim - 1)) if of_samples else weights
    try:
        values = shaped.detach().to(prediction).broadcast_to(shape)
    except RuntimeError as error:
        raise ValueError(
            f"weights of shape {tuple(weights.shape)} do not fit a prediction of {tuple(shape)}; "
            "give one for each sample, (batch,), or for each output"
        ) from error
    wrong = ~(torch.isfinite(values) & (values >= 0))
    if bool(wrong.any()):
        raise ValueError(
            f"weights must be finite and not negative, got {float(values[wrong][0]):.3g}; 0 leaves "
            "an output out"
        )
    unused = gradient.detach()[values == 0]
    if bool(unused.any()):
        raise ValueError(
            f"the loss depends on {int((unused != 0).sum())} outputs whose weight is 0; leave "
            "missing observations out of the loss too: multiply its terms by their weights"
        )
    return values
