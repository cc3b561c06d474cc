"""Half-inverse gradients: a better step for networks trained through a differentiable simulator.

See ``hig.HIG`` for the optimiser, ``hig.record`` for the same direction in ``.grad``,
``hig.half_inverse`` for plain linear algebra and ``hig.rollout`` for fast simulator loops.
"""

from hig import files, testing
from hig._black_box import black_box
from hig._diagnose import Diagnosis, Direction, diagnose
from hig._half_inverse import half_inverse
from hig._hig import HIG, GaussNewton
from hig._kronecker_hig import KroneckerHIG
from hig._kronecker_report import KroneckerReport
from hig._lanczos import Lanczos
from hig._levenberg_marquardt import LevenbergMarquardt
from hig._linear_step import LinearStep
from hig._multi_hig import MultiHIG
from hig._multi_report import MultiStepReport
from hig._record import record
from hig._report import StepReport
from hig._rollout import rollout
from hig._spectral import Damped, HalfInverse
from hig.errors import (
    CorruptResultError,
    DecompositionError,
    InsufficientMemoryError,
    NonFiniteError,
    RankError,
    SampleDependenceError,
    UnsafeResultError,
)
from hig.files import load_results, save_results

__version__ = "0.1.0"

__all__ = [
    "HIG",
    "CorruptResultError",
    "Damped",
    "DecompositionError",
    "Diagnosis",
    "Direction",
    "GaussNewton",
    "HalfInverse",
    "InsufficientMemoryError",
    "KroneckerHIG",
    "KroneckerReport",
    "Lanczos",
    "LevenbergMarquardt",
    "LinearStep",
    "MultiHIG",
    "MultiStepReport",
    "NonFiniteError",
    "RankError",
    "SampleDependenceError",
    "StepReport",
    "UnsafeResultError",
    "black_box",
    "diagnose",
    "files",
    "half_inverse",
    "load_results",
    "record",
    "rollout",
    "save_results",
    "testing",
]
