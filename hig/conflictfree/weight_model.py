"""Weight models, under ``conflictfree``'s module name."""

from hig.conflictfree._weights import EqualWeight, WeightModel

__all__ = [
    "EqualWeight",
    "WeightModel",
]
