"""Weight models, as ``conflictfree.weight_model`` has them.

A wildcard import of the original also brings the names that it imports: so does this one.
"""
# isort: skip_file

from typing import Optional, Sequence, Union  # noqa: UP035

import torch

from hig.conflictfree import EqualWeight, WeightModel

__all__ = ["EqualWeight", "Optional", "Sequence", "Union", "WeightModel", "torch"]
