"""Constants of a simulation as tensors."""

from functools import lru_cache

import torch
from torch import Tensor


@lru_cache(maxsize=64)
def constant(
    values: tuple[float, ...] | complex, dtype: torch.dtype, device: torch.device
) -> Tensor:
    """Return the same tensor in every call; nobody may change it.

    Making a tensor of Python's numbers copies them from the host, for which a GPU is waited for and
    which cannot be recorded in a CUDA graph: here it happens once.
    """
    with torch.inference_mode(False):  # it may be used in training later
        return torch.tensor(values, dtype=dtype, device=device)
