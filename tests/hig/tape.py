"""A CUDA graph on the CPU: operations recorded once, and run again in place."""

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

ATEN = torch.ops.aten
TO_THE_HOST = {
    ATEN._local_scalar_dense.default,
    ATEN.is_nonzero.default,
    ATEN.nonzero.default,
    ATEN.equal.default,
}


class Tape(TorchDispatchMode):
    """Records what is done below autograd while it is open."""

    def __init__(self):
        super().__init__()
        self.calls = []
        self.replays = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func in TO_THE_HOST:
            raise RuntimeError(f"{func} in a record: the host would wait for the device")
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        self.calls.append((func, args, kwargs, result))
        return result

    @torch.no_grad()
    def replay(self):
        """All again, each result into the memory of the recorded one."""
        self.replays += 1
        for func, args, kwargs, result in self.calls:
            pairs = zip(tree_leaves(result), tree_leaves(func(*args, **kwargs)), strict=True)
            for old, new in pairs:
                # Views and operations in place have the memory already.
                if isinstance(old, torch.Tensor) and old.data_ptr() != new.data_ptr():
                    old.data.copy_(new)
