"""Conflict-free combination of the gradients of several losses.

See ``hig.conflictfree.backward`` for several losses to ``.grad`` in one call,
``hig.conflictfree.AlternatingBackward`` for one loss per step, and the operators for plain linear
algebra on an (m, P) matrix. The names of the package ``conflictfree``, and of its modules, are
all here, so that a script written for it runs after its imports are changed.
"""

from hig.conflictfree._alternating import AlternatingBackward
from hig.conflictfree._angles import (
    estimate_conflict,
    get_cos_similarity,
    transfer_coef_double,
    unit_vector,
)
from hig.conflictfree._backward import backward
from hig.conflictfree._config import ConFIG_update, ConFIG_update_double, ConFIGOperator
from hig.conflictfree._conflict_report import ConflictReport
from hig.conflictfree._gradient_operator import GradientOperator
from hig.conflictfree._imtlg import IMTLGOperator
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
from hig.conflictfree._loss_gradients import loss_gradients
from hig.conflictfree._loss_recorders import LatestLossRecorder, LossRecorder, MomentumLossRecorder
from hig.conflictfree._momentum_operator import MomentumOperator
from hig.conflictfree._parameter_vectors import (
    apply_gradient_vector,
    apply_gradient_vector_para_based,
    apply_para_vector,
    get_gradient_vector,
    get_para_vector,
)
from hig.conflictfree._pcgrad import PCGradOperator
from hig.conflictfree._pseudo_momentum import PseudoMomentumOperator
from hig.conflictfree._selectors import OrderedSliceSelector, RandomSliceSelector, has_zero
from hig.conflictfree._separate_momentum import SeparateMomentumOperator
from hig.conflictfree._weight_models import EqualWeight, WeightModel

__all__ = [
    "AlternatingBackward",
    "ConFIGOperator",
    "ConFIG_update",
    "ConFIG_update_double",
    "ConflictReport",
    "EqualWeight",
    "GradientOperator",
    "IMTLGOperator",
    "LatestLossRecorder",
    "LengthModel",
    "LossRecorder",
    "MomentumLossRecorder",
    "MomentumOperator",
    "OrderedSliceSelector",
    "PCGradOperator",
    "ProjectionLength",
    "PseudoMomentumOperator",
    "RandomSliceSelector",
    "SeparateMomentumOperator",
    "TrackArithmeticAverage",
    "TrackGeometricAverage",
    "TrackHarmonicAverage",
    "TrackMaximum",
    "TrackMinimum",
    "TrackSpecific",
    "WeightModel",
    "apply_gradient_vector",
    "apply_gradient_vector_para_based",
    "apply_para_vector",
    "backward",
    "estimate_conflict",
    "get_cos_similarity",
    "get_gradient_vector",
    "get_para_vector",
    "has_zero",
    "loss_gradients",
    "transfer_coef_double",
    "unit_vector",
]
