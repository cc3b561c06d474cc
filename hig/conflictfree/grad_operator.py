"""Operators and their parts, as ``conflictfree.grad_operator`` has them.

A wildcard import of the original also brings the names that it imports: so does this one.
"""
# isort: skip_file

from typing import Literal, Optional, Sequence, Tuple, Union  # noqa: UP035

import numpy as np
import torch
from torch import Tensor

from hig.conflictfree import (
    ConFIGOperator, ConFIG_update, ConFIG_update_double, EqualWeight, GradientOperator,
    IMTLGOperator, LengthModel, OrderedSliceSelector, PCGradOperator, ProjectionLength,
    RandomSliceSelector, TrackArithmeticAverage, TrackGeometricAverage, TrackHarmonicAverage,
    TrackMaximum, TrackMinimum, TrackSpecific, WeightModel, apply_gradient_vector,
    apply_gradient_vector_para_based, apply_para_vector, estimate_conflict, get_cos_similarity,
    get_gradient_vector, get_para_vector, has_zero, transfer_coef_double, unit_vector,
)  # fmt: skip

__all__ = [
    "ConFIGOperator", "ConFIG_update", "ConFIG_update_double", "EqualWeight", "GradientOperator",
    "IMTLGOperator", "LengthModel", "Literal", "Optional", "OrderedSliceSelector",
    "PCGradOperator", "ProjectionLength", "RandomSliceSelector", "Sequence", "Tensor",
    "TrackArithmeticAverage", "TrackGeometricAverage", "TrackHarmonicAverage", "TrackMaximum",
    "TrackMinimum", "TrackSpecific", "Tuple", "Union", "WeightModel", "apply_gradient_vector",
    "apply_gradient_vector_para_based", "apply_para_vector", "estimate_conflict",
    "get_cos_similarity", "get_gradient_vector", "get_para_vector", "has_zero", "np", "torch",
    "transfer_coef_double", "unit_vector",
]  # fmt: skip
