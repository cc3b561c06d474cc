"""Loss recorders, under ``conflictfree``'s module name.

A wildcard import of the original also brings what it has imported: so does this one.
"""

from typing import Sequence, Tuple, Union  # noqa: UP035  # the original's

from hig.conflictfree._loss_recorders import LatestLossRecorder, LossRecorder, MomentumLossRecorder

__all__ = [
    "LatestLossRecorder",
    "LossRecorder",
    "MomentumLossRecorder",
    "Sequence",
    "Tuple",
    "Union",
]
