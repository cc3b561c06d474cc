"""Weight models, under ``conflictfree``'s module name.

A wildcard import of the original also brings what it has imported: so does this one.
"""

from typing import Optional, Sequence, Union  # noqa: UP035  # the original's

import torch

from hig.conflictfree._weight_models import EqualWeight, WeightModel

__all__ = [
    "EqualWeight",
    "Optional",
    "Sequence",
    "Union",
    "WeightModel",
    "torch",
]
