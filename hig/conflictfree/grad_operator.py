"""Operators, and what they take, under ``conflictfree``'s module name.

A wildcard import of the original also brings what it has imported: so does this one.
"""

from typing import Literal, Optional, Sequence, Tuple, Union  # noqa: UP035  # the original's

import numpy as np
import torch
from torch import Tensor

from hig.conflictfree._angles import (
    estimate_conflict,
    get_cos_similarity,
    transfer_coef_double,
    unit_vector,
)
from hig.conflictfree._config import ConFIG_update, ConFIG_update_double, ConFIGOperator
from hig.conflictfree._gradient_operator import GradientOperator
from hig.conflictfree._imtlg_operator import IMTLGOperator
from hig.conflictfree._length_models import (
    LengthModel,
    ProjectionLength,
    TrackArithmeticAverage,
    TrackGeometricAverage,
    TrackHarmonicAverage,
    TrackMaximum,
    TrackMinimum,
    TrackSpecific,
)
from hig.conflictfree._parameter_vectors import (
    apply_gradient_vector,
    apply_gradient_vector_para_based,
    apply_para_vector,
    get_gradient_vector,
    get_para_vector,
)
from hig.conflictfree._pcgrad_operator import PCGradOperator
from hig.conflictfree._selectors import OrderedSliceSelector, RandomSliceSelector, has_zero
from hig.conflictfree._weight_models import EqualWeight, WeightModel

__all__ = [
    "ConFIGOperator",
    "ConFIG_update",
    "ConFIG_update_double",
    "EqualWeight",
    "GradientOperator",
    "IMTLGOperator",
    "LengthModel",
    "Literal",
    "Optional",
    "OrderedSliceSelector",
    "PCGradOperator",
    "ProjectionLength",
    "RandomSliceSelector",
    "Sequence",
    "Tensor",
    "TrackArithmeticAverage",
    "TrackGeometricAverage",
    "TrackHarmonicAverage",
    "TrackMaximum",
    "TrackMinimum",
    "TrackSpecific",
    "Tuple",
    "Union",
    "WeightModel",
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
