"""Reasons why parameters cannot be taken layer by layer, for reports and errors."""

from typing import Any

import torch

from hig._jacobian.exactness import COARSEST_CHECKED
from hig._torch.autograd_graph import coarsest_dtype

__all__ = ["coupling_reason"]

_COUPLED = "samples influence one another"


def coupling_reason(nodes: set[Any], dtype: torch.dtype) -> str:
    """Return the likely reason why rows of samples cannot be told apart, or were not exact.

    Args:
        nodes: nodes of the graph of the prediction, whose names give hints.
        dtype: dtype of the prediction.
    """
    reasons = []
    if any("BatchNorm" in node.name() for node in nodes):
        reasons.append(f"{_COUPLED} (batch normalisation)")
    coarsest = coarsest_dtype(nodes, dtype)
    if torch.finfo(coarsest).eps > max(COARSEST_CHECKED, torch.finfo(dtype).eps):
        reasons.append(
            f"parts of network or simulator are computed in {coarsest}, whose rounding hides "
            "whether factors of layers are exact"
        )
    return " and ".join(reasons) or _COUPLED
