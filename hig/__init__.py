"""Half-inverse gradients: a better step for networks trained through a differentiable simulator.

See ``hig.HIG`` for the optimiser, ``hig.record`` to write its direction into ``.grad``,
``hig.half_inverse`` for plain linear algebra and ``hig.rollout`` for fast simulator loops.
"""

from hig import files, testing
from hig._jacobian.controls import controls
from hig._jacobian.graph_products import Product, register_product
from hig._kronecker.optimizer import KroneckerHIG
from hig._kronecker.report import KroneckerReport
from hig._optim.diagnose import Diagnosis, Direction, diagnose
from hig._optim.half_inverse import half_inverse
from hig._optim.hig import HIG, GaussNewton
from hig._optim.levenberg_marquardt import LevenbergMarquardt
from hig._optim.multi_hig import MultiHIG
from hig._optim.recommend import Cost, Recommendation, recommend
from hig._optim.record import record
from hig._simulation.black_box import black_box
from hig._simulation.linear_step import LinearStep
from hig._simulation.rollout import rollout
from hig._spectral.filters import Damped, HalfInverse
from hig._spectral.lanczos import Lanczos
from hig._step.reports import MultiStepReport, StepReport
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

__version__ = "0.2.0"

__all__ = [
    "HIG",
    "CorruptResultError",
    "Cost",
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
    "Product",
    "RankError",
    "Recommendation",
    "SampleDependenceError",
    "StepReport",
    "UnsafeResultError",
    "black_box",
    "controls",
    "diagnose",
    "files",
    "half_inverse",
    "load_results",
    "recommend",
    "record",
    "register_product",
    "rollout",
    "save_results",
    "testing",
]
