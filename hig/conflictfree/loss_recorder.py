"""Loss recorders, under ``conflictfree``'s module name."""

from hig.conflictfree._loss_recorders import LatestLossRecorder, LossRecorder, MomentumLossRecorder

__all__ = [
    "LatestLossRecorder",
    "LossRecorder",
    "MomentumLossRecorder",
]
