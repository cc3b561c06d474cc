"""Length models, vectors, angles and selectors, as ``conflictfree.length_model`` has them.

A wildcard import of the original also brings the names that it imports: so does this one.
"""
# isort: skip_file

from typing import Literal, Optional, Sequence, Tuple, Union  # noqa: UP035

import numpy as np
import torch
from torch import Tensor

from hig.conflictfree import (
    LengthModel, OrderedSliceSelector, ProjectionLength, RandomSliceSelector,
    TrackArithmeticAverage, TrackGeometricAverage, TrackHarmonicAverage, TrackMaximum,
    TrackMinimum, TrackSpecific, apply_gradient_vector, apply_gradient_vector_para_based,
    apply_para_vector, estimate_conflict, get_cos_similarity, get_gradient_vector,
    get_para_vector, has_zero, transfer_coef_double, unit_vector,
)  # fmt: skip
from hig.conflictfree._length_models import (
    TrackedLength as _FlexibleTrackProjectionLength,  # noqa: F401  # own models derive from it
)

__all__ = [
    "LengthModel", "Literal", "Optional", "OrderedSliceSelector", "ProjectionLength",
    "RandomSliceSelector", "Sequence", "Tensor", "TrackArithmeticAverage",
    "TrackGeometricAverage", "TrackHarmonicAverage", "TrackMaximum", "TrackMinimum",
    "TrackSpecific", "Tuple", "Union", "apply_gradient_vector",
    "apply_gradient_vector_para_based", "apply_para_vector", "estimate_conflict",
    "get_cos_similarity", "get_gradient_vector", "get_para_vector", "has_zero", "np", "torch",
    "transfer_coef_double", "unit_vector",
]  # fmt: skip
