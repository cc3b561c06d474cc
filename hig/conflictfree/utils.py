"""Vectors, angles and selectors, as ``conflictfree.utils`` has them.

A wildcard import of the original also brings the names that it imports: so does this one.
"""
# isort: skip_file

from typing import Literal, Sequence, Tuple, Union  # noqa: UP035

import numpy as np
import torch

from hig.conflictfree import (
    OrderedSliceSelector, RandomSliceSelector, apply_gradient_vector,
    apply_gradient_vector_para_based, apply_para_vector, estimate_conflict, get_cos_similarity,
    get_gradient_vector, get_para_vector, has_zero, transfer_coef_double, unit_vector,
)  # fmt: skip

__all__ = [
    "Literal", "OrderedSliceSelector", "RandomSliceSelector", "Sequence", "Tuple", "Union",
    "apply_gradient_vector", "apply_gradient_vector_para_based", "apply_para_vector",
    "estimate_conflict", "get_cos_similarity", "get_gradient_vector", "get_para_vector",
    "has_zero", "np", "torch", "transfer_coef_double", "unit_vector",
]  # fmt: skip
