"""Counting the host synchronisations of a computation."""

import torch
from torch.overrides import TorchFunctionMode

TO_THE_HOST = {
    torch.Tensor.item, torch.Tensor.tolist, torch.Tensor.__bool__, torch.Tensor.__float__,
    torch.Tensor.__int__, torch.Tensor.cpu, torch.Tensor.numpy, torch.Tensor.nonzero,
    torch.nonzero, torch.equal, torch.allclose,
}  # fmt: skip


class Transfers(TorchFunctionMode):
    """Counts the calls that make the host wait for the device."""

    def __init__(self):
        super().__init__()
        self.count = 0

    def __torch_function__(self, function, types, args=(), kwargs=None):
        self.count += function in TO_THE_HOST
        return function(*args, **(kwargs or {}))
