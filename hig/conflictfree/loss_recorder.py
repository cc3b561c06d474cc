"""Loss recorders, as ``conflictfree.loss_recorder`` has them.

A wildcard import of the original also brings the names that it imports: so does this one.
"""
# isort: skip_file

from typing import Sequence, Tuple, Union  # noqa: UP035

from hig.conflictfree import LatestLossRecorder, LossRecorder, MomentumLossRecorder

__all__ = [
    "LatestLossRecorder", "LossRecorder", "MomentumLossRecorder", "Sequence", "Tuple", "Union",
]  # fmt: skip
