"""Vectors, angles and selectors, under ``conflictfree``'s module name.

A wildcard import of the original also brings what it has imported: so does this one.
"""

from typing import Literal, Sequence, Tuple, Union  # noqa: UP035  # the original's

import numpy as np
import torch

from hig.conflictfree._angles import (
    estimate_conflict,
    get_cos_similarity,
    transfer_coef_double,
    unit_vector,
)
from hig.conflictfree._parameter_vectors import (
    apply_gradient_vector,
    apply_gradient_vector_para_based,
    apply_para_vector,
    get_gradient_vector,
    get_para_vector,
)
from hig.conflictfree._selectors import OrderedSliceSelector, RandomSliceSelector, has_zero

__all__ = [
    "Literal",
    "OrderedSliceSelector",
    "RandomSliceSelector",
    "Sequence",
    "Tuple",
    "Union",
    "apply_gradient_vector",
    "apply_gradient_vector_para_based",
    "apply_para_vector",
    "estimate_conflict",
    "get_cos_similarity",
    "get_gradient_vector",
    "get_para_vector",
    "has_zero",
    "np",
    "torch",
    "transfer_coef_double",
    "unit_vector",
]
