"""Exceptions, and the descriptions of values in their messages."""

import pickle

import numpy as np
import pytest
import torch

import hig
from hig import errors
from hig.errors import described, out_of_memory, printable

KINDS = {
    "CorruptResultError": ValueError,
    "DecompositionError": ArithmeticError,
    "InsufficientMemoryError": MemoryError,
    "NonFiniteError": ArithmeticError,
    "RankError": RuntimeError,
    "SampleDependenceError": ValueError,
    "UnsafeResultError": ValueError,
}


@pytest.mark.parametrize("name", KINDS)
def test_exceptions_are_public_and_derive_from_those_of_python(name):
    kind = getattr(errors, name)
    assert getattr(hig, name) is kind and issubclass(kind, KINDS[name])
    assert str(pickle.loads(pickle.dumps(kind("text")))) == "text"


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (None, "None"),
        (True, "True"),
        (3, "3"),
        (-0.5, "-0.5"),
        (2j, "2j"),
        ("x\n", "'x\\n'"),
        (torch.ones(2, 3), "a tensor of shape (2, 3)"),
        (torch.nn.Parameter(torch.ones(())), "a tensor of shape ()"),
        (hig.HalfInverse, "the class HalfInverse"),
        ([1, 2], "a list of 2"),
        ((1,), "a tuple of 1"),
        ([], "an empty list"),
        ({}, "dict"),
        (np.ones(2), "ndarray"),
        (2**255, str(2**255)),
        (-(2**256), "a whole number of 257 bits"),
        (10**5000, "a whole number of 16610 bits"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_descriptions(value, expected):
    assert described(value) == expected


def nested(depth):
    value = []
    for _ in range(depth):
        value = [value]
    return value


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("plain", "plain"),
        ("two\nlines\t\x1b[31m", "two\\nlines\\t\\x1b[31m"),
        ("\udcff", "\\udcff"),
        ("ü ‮", "ü \\u202e"),
        (3.5, "3.5"),
        (nested(100_000), "a list that cannot be written out"),
        (10**5000, "a int that cannot be written out"),
    ],
    ids=range(7),
)
def test_text_of_unknown_origin_is_one_line(value, expected):
    assert printable(value) == expected


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (torch.OutOfMemoryError("CUDA"), True),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried"), True),
        (RuntimeError("CUDA error: out of memory"), True),
        (RuntimeError("CUSOLVER_STATUS_ALLOC_FAILED"), True),
        (RuntimeError("shapes cannot be multiplied"), False),
    ],
)
def test_memory_that_ran_out(error, expected):
    assert out_of_memory(error) is expected
