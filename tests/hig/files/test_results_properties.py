"""Result files of any nested plain values and arrays come back as they were."""

import math
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays_of

from hig import load_results, save_results

SCALARS = (
    st.none()
    | st.booleans()
    | st.integers(-(2**100), 2**100)
    | st.floats()
    | st.complex_numbers()
    | st.text()
    | st.binary()
)
DTYPES = (
    arrays_of.boolean_dtypes()
    | arrays_of.integer_dtypes()
    | arrays_of.unsigned_integer_dtypes()
    | arrays_of.floating_dtypes()
    | arrays_of.complex_number_dtypes()
    | arrays_of.byte_string_dtypes()
    | arrays_of.unicode_string_dtypes()
)
ARRAYS = arrays_of.arrays(DTYPES, arrays_of.array_shapes(min_dims=0, max_dims=3, min_side=0))
HASHABLE = st.none() | st.booleans() | st.integers() | st.text() | st.binary()
LEAVES = SCALARS | ARRAYS | st.sets(HASHABLE) | st.frozensets(HASHABLE)
VALUES = st.recursive(
    LEAVES,
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.lists(inner, max_size=4).map(tuple)
        | st.dictionaries(HASHABLE | st.tuples(HASHABLE, HASHABLE), inner, max_size=4)
    ),
    max_leaves=12,
)


def same(found, expected):
    """Equal in type, shape, dtype and value; NaN is NaN, and zeros have signs."""
    if type(found) is not type(expected):
        return False
    if isinstance(expected, np.ndarray | np.generic):
        equal = found.dtype == expected.dtype and found.shape == expected.shape
        return equal and found.tobytes() == expected.tobytes()
    if isinstance(expected, dict):
        pairs = zip(found.items(), expected.items(), strict=True)
        return len(found) == len(expected) and all(same(a, b) for a, b in pairs)
    if isinstance(expected, list | tuple):
        return len(found) == len(expected) and all(map(same, found, expected))
    if isinstance(expected, float):
        signs = math.copysign(1, found) == math.copysign(1, expected)
        return (math.isnan(found) and math.isnan(expected)) or (found == expected and signs)
    if isinstance(expected, complex):
        return same(found.real, expected.real) and same(found.imag, expected.imag)
    return found == expected


@given(results=st.dictionaries(st.text(), VALUES, max_size=5))
def test_any_results_come_back(results, tmp_path_factory):
    path = tmp_path_factory.mktemp("results") / "run.pickle"
    save_results(path, results)
    assert same(load_results(path), results)
    assert sorted(file.name for file in path.parent.iterdir()) == ["run.pickle", "run.txt"]


def test_texts_that_no_encoding_has(tmp_path):
    results = {"name": "half \ud800 a pair"}
    save_results(tmp_path / "run.pickle", results)
    assert load_results(tmp_path / "run.pickle") == results
    assert r"\ud800" in (tmp_path / "run.txt").read_text()


@pytest.mark.parametrize("levels", ["in itself", 2 * sys.getrecursionlimit(), 100_000])
def test_results_without_an_end(levels, tmp_path):
    results = inner = {}
    deep = levels != "in itself"
    for _ in range(levels if deep else 1):
        inner["next"] = inner = {} if deep else results
    with pytest.raises(ValueError, match="must not hold themselves"):
        save_results(tmp_path / "run.pickle", results)
    assert not list(tmp_path.iterdir())
