"""Arrays in pickles: plain bytes of known dtype and size, by no function of numpy's own."""

import pickle

import numpy as np
import pytest

from hig import CorruptResultError, UnsafeResultError, load_results
from hig.files._numpy_pickle import is_numpy_scalar, resolve
from tests.hig.files.test_results import assert_same, example_results


def test_reads_the_names_of_older_numpy(tmp_path):
    path = tmp_path / "a.pickle"
    data = pickle.dumps(example_results(), protocol=2)
    assert b"numpy._core." in data
    path.write_bytes(data.replace(b"numpy._core.", b"numpy.core."))
    assert_same(load_results(path), example_results())


@pytest.mark.parametrize("module", [b"numpy.core.multiarray", b"numpy._core.multiarray"])
def test_object_arrays_in_both_spellings(tmp_path, module):
    path = tmp_path / "a.pickle"
    start = b"c" + module + b"\n_reconstruct\n(cnumpy\nndarray\n(K\x00tS'b'\ntR"
    dtype = b"cnumpy\ndtype\n(S'O8'\nI00\nI01\ntR"
    path.write_bytes(start + b"(K\x01(K\x01t" + dtype + b"I00\n](cos\nsystem\ntatb.")
    with pytest.raises(UnsafeResultError, match="dtype 'O8'"):
        load_results(path)


@pytest.mark.parametrize("dtype", ["S0", "U0"])
def test_strings_of_length_zero_are_not_as_many_as_the_file_says(tmp_path, dtype):
    path = tmp_path / "a.pickle"
    data = pickle.dumps({"a": np.zeros(0, "S1"), "b": np.str_("")}, protocol=2)
    data = data.replace(b"X\x02\x00\x00\x00S1", b"X\x02\x00\x00\x00" + dtype.encode())
    path.write_bytes(data)
    assert load_results(path)["b"] == ""
    path.write_bytes(data.replace(b"K\x01K\x00\x85", b"K\x01J\xff\xff\xff\x7f\x85"))
    assert path.read_bytes() != data
    with pytest.raises(CorruptResultError, match=r"array of shape \(2147483647,\)"):
        load_results(path)


def test_code_points_that_are_not_characters_are_corrupt(tmp_path):
    path = tmp_path / "a.pickle"
    data = pickle.dumps({"a": np.array(["abc"])}, protocol=4)
    path.write_bytes(data.replace(b"b\x00\x00\x00", b"b\xff\xff\xff"))
    with pytest.raises(CorruptResultError, match="not a character"):
        load_results(path)


def test_an_array_of_the_wrong_size_is_corrupt(tmp_path):
    path = tmp_path / "a.pickle"
    data = pickle.dumps({"a": np.arange(3.0)}, protocol=4)
    assert data.count(b"K\x03\x85") == 1  # the shape (3,)
    for length in (b"\x02", b"\x04"):
        path.write_bytes(data.replace(b"K\x03\x85", b"K" + length + b"\x85"))
        with pytest.raises(CorruptResultError):
            load_results(path)


def test_the_dtype_of_every_other_array_stays(tmp_path):
    """`np.dtype("f8", copy=False)` with a state would turn the byte order of numpy's float64."""
    data = pickle.dumps({"a": np.arange(3.0)}, protocol=2)
    path = tmp_path / "a.pickle"
    path.write_bytes(data.replace(b"\x89\x88\x87", b"\x89\x89\x87").replace(b"<", b">"))
    assert load_results(path)["a"].dtype == np.dtype(">f8")
    assert np.arange(3.0).dtype.isnative


def test_functions_on_the_list_cannot_be_changed(tmp_path):
    """A BUILD opcode sets attributes of whatever is on the stack, functions included."""
    path = tmp_path / "a.pickle"
    for name in (b"numpy\ndtype", b"numpy._core.numeric\n_frombuffer", b"builtins\ncomplex"):
        path.write_bytes(b"\x80\x02c" + name + b"\nN}X\x01\x00\x00\x00aK\x01s\x86b.")
        with pytest.raises(UnsafeResultError, match="a change to a _Named"):
            load_results(path)


def test_a_tuple_that_holds_itself_is_corrupt(tmp_path):
    """Its arrays would be left out."""
    value = (np.arange(3.0), [])
    value[1].append(value)
    path = tmp_path / "a.pickle"
    path.write_bytes(pickle.dumps({"a": value}))
    with pytest.raises(CorruptResultError, match="a tuple that holds itself"):
        load_results(path)


class Float(np.float64):
    """A number with a class of its own."""


@pytest.mark.parametrize(
    ("value", "expected"),
    [(np.float32(1), True), (np.str_("a"), True), (Float(1.0), False), (1.0, False), ([], False)],
)
def test_scalars_are_of_exact_numpy_types(value, expected):
    assert is_numpy_scalar(value) is expected


def test_other_values_are_not_resolved():
    shared = [1]
    value = {"a": shared, "b": (shared, {2})}
    found = resolve(value, {})
    assert found is value and found["a"] is found["b"][0]
    with pytest.raises(TypeError, match="it holds a Float"):
        resolve({"a": [Float(1.0)]}, {})
