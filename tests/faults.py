"""Faults to inject, and how many parameters have suffered from them."""

from collections import Counter
from contextlib import contextmanager

import torch
from torch.utils._python_dispatch import TorchDispatchMode

# "injected" and "corrupted", for the last line of a test run.
TALLY = Counter()


def count(unharmed):
    """Count a fault that was injected, and demand that it has done no harm."""
    TALLY["injected"] += 1
    TALLY["corrupted"] += not unharmed
    assert unharmed


class OutOfMemoryAt(TorchDispatchMode):
    """Lets memory run out once, at one of the operations that torch is asked for.

    Also at those that take none: where a step may fail, an interruption may come.

    Attributes:
        operations: how many there were.
        struck: whether it has happened.
    """

    def __init__(self, place=None):
        super().__init__()
        self.place, self.operations, self.struck = place, 0, False

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if function.namespace != "profiler":  # the marks of torch around a step
            self.operations += 1
        if self.operations - 1 == self.place and not self.struck:
            self.struck = True
            if self.place % 2:
                raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to")
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        return function(*args, **(kwargs or {}))


def places(operations, most=24):
    """Numbers of operations, spread over a step and dense at its end, where parameters move."""
    last = range(max(0, operations - most // 2), operations)
    return sorted({*range(0, operations, max(1, 2 * operations // most)), *last})


class _NonFiniteDerivative(torch.autograd.Function):
    """The identity, with NaN for a derivative."""

    generate_vmap_rule = True

    @staticmethod
    def forward(tensor):
        return tensor.clone()

    @staticmethod
    def setup_context(ctx, inputs, output):
        pass

    @staticmethod
    def backward(ctx, gradient):
        return gradient * float("nan")


# What comes out of a network or simulator instead of its output.
OUTPUTS = {
    "NaN in the output": lambda output: output * float("nan"),
    "Inf in the output": lambda output: output / 0,
    "NaN in one sample": lambda output: torch.cat([output[:1] * float("nan"), output[1:]]),
    "NaN in the Jacobian": _NonFiniteDerivative.apply,
    "no rank": lambda output: 0 * output,
}


def _no_convergence(*_, **__):
    raise torch.linalg.LinAlgError("linalg: the algorithm failed to converge")


@contextmanager
def no_convergence(monkeypatch):
    """No decomposition converges."""
    with monkeypatch.context() as patch:
        for name in ("eigh", "eigvalsh", "svd", "qr"):
            patch.setattr(torch.linalg, name, _no_convergence)
        yield


def same(first, second):
    """Whether two states, of tensors and plain Python, are equal to the last bit."""
    if isinstance(first, torch.Tensor):
        return isinstance(second, torch.Tensor) and _bits(first) == _bits(second)
    if isinstance(first, dict):
        keys = first.keys() == second.keys()
        return keys and all(same(value, second[key]) for key, value in first.items())
    if isinstance(first, list | tuple):
        return len(first) == len(second) and all(map(same, first, second))
    return first == second or first != first


def _bits(tensor):
    return tensor.shape, tensor.dtype, tensor.detach().cpu().numpy().tobytes()
