"""Why parameters cannot be taken layer by layer, in words."""

from collections.abc import Sequence

import torch
from torch import Tensor

from hig._capture import LayerUse
from hig._graph import nodes_behind

__all__ = ["COARSEST_CHECKED", "coarsest_dtype", "why_not_exact", "why_not_layered"]

_COUPLED = "samples influence one another"
_ELSEWHERE = "a weight is used elsewhere than in the linear or convolution calls seen"


# In halves a difference of a few hundredths may be rounding, or a sample that influences another.
COARSEST_CHECKED = torch.finfo(torch.float32).eps


def coarsest_dtype(prediction: Tensor) -> torch.dtype:
    """The coarsest floating-point type that a prediction was computed through.

    A float64 network before a float32 simulator, or a network under autocast, has derivatives with
    the rounding of that type, whatever type they are given in.

    Args:
        prediction: (B, ...), with its graph.
    """
    found = {entry.dtype for node in nodes_behind(prediction) for entry in node._input_metadata}
    inexact = [t for t in found if t.is_floating_point or t.is_complex] + [prediction.dtype]
    return max((t.to_real() for t in inexact), key=lambda dtype: torch.finfo(dtype).eps)


def why_not_exact(prediction: Tensor) -> str:
    """What may have made the factors of captured layers differ from the Jacobian.

    Args:
        prediction: (B, ...), with its graph, which names what can be told apart.
    """
    names = [node.name() for node in nodes_behind(prediction)]
    reasons = []
    if any("BackwardBackward" in name for name in names):
        reasons.append(
            "derivatives of the network are used too (autograd.grad with create_graph=True), and "
            "these depend on weights outside of the linear or convolution calls seen"
        )
    if any("BatchNorm" in name for name in names):
        reasons.append(f"{_COUPLED} (batch normalisation)")
    coarsest = coarsest_dtype(prediction)
    if torch.finfo(coarsest).eps > max(COARSEST_CHECKED, torch.finfo(prediction.dtype).eps):
        reasons.append(
            f"parts of network or simulator are computed in {coarsest}, whose rounding hides "
            "whether factors of layers are exact"
        )
    return " and ".join(reasons) or f"{_COUPLED}, or {_ELSEWHERE}"


def why_not_layered(parameter: Tensor, uses: Sequence[LayerUse], samples: int) -> str:
    """Why a parameter is part of no layer that can be taken apart into factors.

    Args:
        parameter: the parameter.
        uses: all captured layer calls.
        samples: B, rows of the prediction.
    """
    own = [use for use in uses if parameter is use.weight or parameter is use.bias]
    if not own:
        return "no linear or convolution call was seen to use it as weight or bias"
    if not all(use.has_batch(samples) for use in own):
        # Several groups of points that are joined only behind the network, for one.
        lengths = ", ".join(str(n) for n in dict.fromkeys(use.input.shape[0] for use in own))
        return (
            f"its layer was called with leading axes of {lengths}, the prediction has {samples} "
            "samples; call the network once for all of them, samples first"
        )
    return "it is used by layers of different shape, or both as weight and as bias"
