"""Reasons why parameters cannot be taken layer by layer, for reports and errors."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from hig._jacobian.capture import LayerUse
from hig._jacobian.exactness import COARSEST_CHECKED
from hig._torch.autograd_graph import coarsest_dtype

__all__ = ["fallback_reason", "inexactness_reason"]

_COUPLED = "samples influence one another"
_ELSEWHERE = "a weight is used elsewhere than in the linear or convolution calls seen"


def inexactness_reason(nodes: set[Any], dtype: torch.dtype) -> str:
    """Return the likely reason why the factors of captured layers differ from the Jacobian.

    Args:
        nodes: nodes of the graph of the prediction, whose names give hints.
        dtype: dtype of the prediction.
    """
    names = {node.name() for node in nodes}
    reasons = []
    if any("BackwardBackward" in name for name in names):
        reasons.append(
            "derivatives of the network are used too (autograd.grad with create_graph=True), and "
            "these depend on weights outside of the linear or convolution calls seen"
        )
    if any("BatchNorm" in name for name in names):
        reasons.append(f"{_COUPLED} (batch normalisation)")
    coarsest = coarsest_dtype(nodes, dtype)
    if torch.finfo(coarsest).eps > max(COARSEST_CHECKED, torch.finfo(dtype).eps):
        reasons.append(
            f"parts of network or simulator are computed in {coarsest}, whose rounding hides "
            "whether factors of layers are exact"
        )
    return " and ".join(reasons) or f"{_COUPLED}, or {_ELSEWHERE}"


def fallback_reason(parameter: Tensor, uses: Sequence[LayerUse], samples: int) -> str:
    """Return the reason why a parameter is part of no layer with exact factors.

    Args:
        parameter: the parameter.
        uses: all captured layer calls.
        samples: B, rows of the prediction.
    """
    own_uses = [use for use in uses if parameter is use.weight or parameter is use.bias]
    if not own_uses:
        return "no linear or convolution call was seen to use it as weight or bias"
    if not all(use.has_batch(samples) for use in own_uses):
        # For example several groups of points that are joined only behind the network.
        lengths = ", ".join(str(n) for n in dict.fromkeys(use.input.shape[0] for use in own_uses))
        return (
            f"its layer was called with leading axes of {lengths}, the prediction has {samples} "
            "samples; call the network once for all of them, samples first"
        )
    return "it is used by layers of different shape, or both as weight and as bias"
