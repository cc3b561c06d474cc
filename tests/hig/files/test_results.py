"""Result files: what goes in comes out, nothing else does, and loading runs nothing."""

import functools
import io
import math
import os
import pickle
import sys
from collections import OrderedDict
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays_of

from hig import CorruptResultError, UnsafeResultError, load_results, save_results


def example_results():
    generator = np.random.default_rng(0)
    return {
        "problem": "nonlinear_oscillators",
        "label": "HIG (trust)",
        "seed": 3,
        "epochs": np.arange(4.0),
        "test_loss": generator.random(4),
        "fortran": np.asfortranarray(generator.random((3, 4)))[:, ::2],
        "empty": np.zeros((0, 3), np.float32),
        "big_endian": np.arange(3, dtype=">i4"),
        "names": np.array(["x1", "v10"]),
        "flags": np.array([True, False]),
        "complex": np.array(1 + 2j, np.complex64),
        "simulation_time": np.float32(1.5),
        "count": np.int64(7),
        "name": np.str_("abc"),
        "sim_par": {"rcond": 1e-6, "lr": 1.0, "sizes": (20, 20), "kappa": None, "inner": {"a": 1j}},
        "mixed": [b"\x00\xff", {"set", 2}, frozenset({1}), [(), ({},)], True, 10**30],
    }


def names(folder):
    return sorted(file.name for file in folder.iterdir())


def assert_same(left, right):
    assert type(left) is type(right)
    if isinstance(left, dict):
        assert list(left) == list(right)
        for key in left:
            assert_same(left[key], right[key])
    elif isinstance(left, list | tuple):
        assert len(left) == len(right)
        for one, other in zip(left, right, strict=True):
            assert_same(one, other)
    elif isinstance(left, np.ndarray | np.generic):
        assert left.dtype == right.dtype
        np.testing.assert_array_equal(left, right)
    else:
        assert left == right


def test_everything_comes_back(tmp_path):
    path = tmp_path / "new" / "folder" / "hig_seed3.pickle"
    save_results(path, example_results())
    loaded = load_results(str(path))
    assert_same(loaded, example_results())
    loaded["epochs"][0] = 5.0  # arrays are writeable


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_reads_every_pickle_protocol(tmp_path, protocol):
    path = tmp_path / "a.pickle"
    path.write_bytes(pickle.dumps(example_results(), protocol=protocol))
    assert_same(load_results(path), example_results())


def test_shared_values(tmp_path):
    array = np.arange(3.0)
    path = tmp_path / "a.pickle"
    path.write_bytes(pickle.dumps({"first": array, "second": (array,), "third": [array]}))
    loaded = load_results(path)
    assert loaded["first"] is loaded["second"][0] is loaded["third"][0]


@pytest.mark.parametrize("sign", [1, -1])
def test_numbers_of_thousands_of_digits(sign, tmp_path):
    number = sign * 10**5000
    results = {"a": number, number: {"b": 1}, (number,): 2}
    save_results(tmp_path / "a.pickle", results)
    assert load_results(tmp_path / "a.pickle") == results
    assert f"a: {hex(number)}\n" in (tmp_path / "a.txt").read_text()


def test_text_next_to_the_pickle(tmp_path):
    save_results(tmp_path / "run.pickle", example_results())
    text = (tmp_path / "run.txt").read_text()
    assert "problem: nonlinear_oscillators\n" in text
    assert "sim_par:\n  rcond: 1e-06\n  lr: 1.0\n" in text
    assert "simulation_time: 1.5\n" in text
    assert "test_loss" not in text
    assert names(tmp_path) == ["run.pickle", "run.txt"]


@pytest.mark.parametrize(
    ("value", "found", "remedy"),
    [
        (torch.zeros(2), "torch.Tensor", r"\.detach\(\)\.cpu\(\)\.numpy\(\)"),
        (torch.nn.Parameter(torch.zeros(2)), "Parameter", r"\.detach\(\)\.cpu\(\)\.numpy\(\)"),
        (torch.float32, "torch.dtype", "str"),
        (np.array([None, 1]), "dtype object", "astype"),
        (np.zeros(1, [("a", "O")]), "dtype", "astype"),
        (np.ma.masked_array([1.0]), "MaskedArray", "numpy.array"),
        (OrderedDict(), "OrderedDict", "list"),
        (Path("a"), "Path", "str"),
        (len, "builtin", "str"),
    ],
)
def test_other_types_are_refused_by_key_path(tmp_path, value, found, remedy):
    results = {"test_loss": [1.0], "example": {"state": [0.0, value]}}
    with pytest.raises(TypeError, match=rf"results\['example'\]\['state'\]\[1\] .*{found}"):
        save_results(tmp_path / "a.pickle", results)
    with pytest.raises(TypeError, match=remedy):
        save_results(tmp_path / "a.pickle", results)
    assert names(tmp_path) == []


def test_keys_and_the_top_are_checked_too(tmp_path):
    with pytest.raises(TypeError, match=r"key .* of results\['sim_par'\] is a torch.dtype"):
        save_results(tmp_path / "a.pickle", {"sim_par": {torch.float32: 1}})
    with pytest.raises(TypeError, match="must be a dict, got a list of 1"):
        save_results(tmp_path / "a.pickle", [1])
    with pytest.raises(ValueError, match=r"must not end in \.txt"):
        save_results(tmp_path / "a.txt", {})


def test_missing_file_lists_what_is_there(tmp_path):
    save_results(tmp_path / "adam.pickle", {})
    with pytest.raises(FileNotFoundError, match=r"hig\.pickle; in its folder: adam\.pickle"):
        load_results(tmp_path / "hig.pickle")
    with pytest.raises(FileNotFoundError, match="none"):
        load_results(tmp_path / "no" / "hig.pickle")


def test_a_folder_is_no_result_file(tmp_path):
    with pytest.raises(IsADirectoryError, match=r"is a folder; give a result file, in it: none"):
        load_results(tmp_path)
    save_results(tmp_path / "adam.pickle", {})
    with pytest.raises(IsADirectoryError, match=r"in it: adam\.pickle"):
        load_results(str(tmp_path))


class Calls:
    """Pickles as the call of a function."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


@pytest.mark.parametrize("protocol", [2, 4, 5])
@pytest.mark.parametrize(
    ("value", "name"),
    [
        (Calls(os.mkdir, "executed"), r"(posix|nt)\.mkdir"),
        (Calls(eval, "1 + 1"), r"\.eval"),
        (Calls(getattr, "text", "upper"), r"\.getattr"),
        (Calls(functools.partial, os.mkdir, "executed"), r"functools\.partial"),
        (Calls(exec, "import os; os.mkdir('executed')"), r"\.exec"),
        (pickle.PickleBuffer, r"PickleBuffer"),
        (slice(1), r"\.slice"),
        (torch.zeros(2), r"torch\._utils\._rebuild_tensor_v2"),
        (np.array([Calls(os.mkdir, "executed")]), "dtype 'O8'|mkdir"),
        (np.array([None]), "dtype 'O8'"),
        (np.zeros(1, [("a", "f8")]), "dtype 'V8'"),
        (np.ma.masked_array([1.0]), r"numpy\.ma"),
    ],
)
def test_foreign_names_are_refused_unrun(tmp_path, monkeypatch, value, name, protocol):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "a.pickle"
    path.write_bytes(pickle.dumps({"epochs": np.arange(3.0), "x": value}, protocol=protocol))
    with pytest.raises(UnsafeResultError, match=name) as caught:
        load_results(path)
    assert str(path) in str(caught.value)
    assert names(tmp_path) == ["a.pickle"]


@pytest.mark.parametrize(
    ("data", "name"),
    [
        (b"cos\nsystem\n(S'mkdir executed'\ntR.", r"os\.system"),
        (b"(S'mkdir executed'\nios\nsystem\n.", "INST"),
        (b"(cos\nsystem\nS'mkdir executed'\no.", r"os\.system"),
        (b"ccopyreg\n_reconstructor\n(cbuiltins\nlist\ncbuiltins\nobject\nNtR.", "_reconstructor"),
        (b"cbuiltins\ngetattr\n(cos\nS'system'\ntR.", r"builtins\.getattr"),
        (b"cnumpy.core.multiarray\n_reconstruct.__globals__\n.", "__globals__"),
        (b"\x8c\x05numpy\x8c\x12ndarray.__reduce__\x93.", "ndarray.__reduce__"),
        (b"cnumpy.core.multiarray\nfromfile\n.", "fromfile"),
        (b"cnumpy._core.multiarray\nfromfile\n.", "fromfile"),
        (b"cnumpy\nload\n(S'a.pickle'\nNI01\ntR.", r"numpy\.load"),
        (b"ctorch.storage\n_load_from_bytes\n(S'a'\ntR.", "_load_from_bytes"),
        (b"Pmkdir executed\n.", "PERSID"),
    ],
)
def test_handwritten_attacks(tmp_path, monkeypatch, data, name):
    monkeypatch.chdir(tmp_path)
    Path("a.pickle").write_bytes(data)
    with pytest.raises(UnsafeResultError, match=rf"a\.pickle asks for .*{name}.* was run"):
        load_results("a.pickle")
    assert names(tmp_path) == ["a.pickle"]


def test_a_pickle_within_bytes_stays_bytes(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    inner = pickle.dumps(Calls(os.mkdir, "executed"))
    save_results("a.pickle", {"inner": inner, "array": np.frombuffer(inner, np.uint8)})
    assert load_results("a.pickle")["inner"] == inner
    assert names(tmp_path) == ["a.pickle", "a.txt"]


@pytest.mark.parametrize("zipped", [False, True])
def test_files_of_torch_are_no_results(tmp_path, monkeypatch, zipped):
    monkeypatch.chdir(tmp_path)
    file = io.BytesIO()
    value = {"a": torch.zeros(2), "b": Calls(os.mkdir, "executed")}
    torch.save(value, file, _use_new_zipfile_serialization=zipped)
    Path("a.pickle").write_bytes(file.getvalue())
    with pytest.raises((UnsafeResultError, CorruptResultError), match=r"a\.pickle"):
        load_results("a.pickle")
    assert names(tmp_path) == ["a.pickle"]


def test_what_holds_itself_is_corrupt(tmp_path):
    path, inner = tmp_path / "a.pickle", []
    inner.append({"a": inner})
    results = {"b": 1}
    results["self"] = results
    for value in ({"a": inner}, results):
        path.write_bytes(pickle.dumps(value))
        with pytest.raises(CorruptResultError, match="that holds itself"):
            load_results(path)


@pytest.mark.parametrize("kind", [list, tuple, dict])
def test_what_repeats_itself_out_of_proportion_is_corrupt(kind, tmp_path):
    path, value = tmp_path / "a.pickle", [1.0, 2.0]
    for _ in range(40):
        value = {"a": value, "b": value} if kind is dict else kind([value, value])
    path.write_bytes(pickle.dumps({"notes": value}))
    with pytest.raises(CorruptResultError, match="repeat their parts to far more than a file"):
        load_results(path)
    with pytest.raises(ValueError, match="repeat their parts to far more"):
        save_results(path.with_name("b.pickle"), {"notes": [np.zeros(10_000)] * 100_000})
    assert names(tmp_path) == ["a.pickle"]
    shared, text = np.arange(1000.0), "note " * 100
    results = {"a": [shared] * 100, "b": [text] * 10_000, "c": [[shared, text]] * 20}
    save_results(path, results)
    assert_same(load_results(path), results)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"not a pickle",
        pickle.dumps([1, 2]),
        pickle.dumps(np.arange(3.0)),
        pickle.dumps(example_results())[:-20],
        pickle.dumps({"a": bytearray(b"1")}, protocol=5),
        b"\x80\x04\x8f(\x8ct.",
    ],
)
def test_corrupt_files(tmp_path, data):
    path = tmp_path / "a.pickle"
    path.write_bytes(data)
    with pytest.raises(CorruptResultError, match=r"a\.pickle .* is not a whole result file"):
        load_results(path)


# -- any nested plain values and arrays ------------------------------------------------------------

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
