"""Result files: what goes in comes out, nothing else does, and loading runs nothing."""

import os
import pickle
from collections import OrderedDict
from pathlib import Path

import numpy as np
import pytest
import torch

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


def test_reads_the_names_of_older_numpy(tmp_path):
    path = tmp_path / "a.pickle"
    data = pickle.dumps(example_results(), protocol=2)
    assert b"numpy._core." in data
    path.write_bytes(data.replace(b"numpy._core.", b"numpy.core."))
    assert_same(load_results(path), example_results())


def test_shared_and_self_containing_values(tmp_path):
    array = np.arange(3.0)
    loop = [array]
    loop.append(loop)
    path = tmp_path / "a.pickle"
    path.write_bytes(pickle.dumps({"first": array, "second": (array,), "loop": loop}))
    loaded = load_results(path)
    assert loaded["first"] is loaded["second"][0] is loaded["loop"][0]
    assert loaded["loop"][1] is loaded["loop"]


def test_text_beside_the_pickle(tmp_path):
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


def test_functions_on_the_list_cannot_be_changed(tmp_path):
    """A BUILD opcode sets attributes of whatever is on the stack, functions included."""
    path = tmp_path / "a.pickle"
    for name in (b"numpy\ndtype", b"numpy._core.numeric\n_frombuffer", b"builtins\ncomplex"):
        path.write_bytes(b"\x80\x02c" + name + b"\nN}X\x01\x00\x00\x00aK\x01s\x86b.")
        with pytest.raises(UnsafeResultError, match="a change to a function"):
            load_results(path)


def test_the_dtype_of_every_other_array_stays(tmp_path):
    """`np.dtype("f8", copy=False)` with a state would turn the byte order of numpy's float64."""
    data = pickle.dumps({"a": np.arange(3.0)}, protocol=2)
    path = tmp_path / "a.pickle"
    path.write_bytes(data.replace(b"\x89\x88\x87", b"\x89\x89\x87").replace(b"<", b">"))
    assert load_results(path)["a"].dtype == np.dtype(">f8")
    assert np.arange(3.0).dtype.isnative


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
        b"\x80\x02}r\xff\xff\xff\x7f.",  # a memo of 2**31 entries
    ],
)
def test_corrupt_files(tmp_path, data):
    path = tmp_path / "a.pickle"
    path.write_bytes(data)
    with pytest.raises(CorruptResultError, match=r"a\.pickle .* is not a whole result file"):
        load_results(path)


def test_an_array_of_the_wrong_size_is_corrupt(tmp_path):
    path = tmp_path / "a.pickle"
    data = pickle.dumps({"a": np.arange(3.0)}, protocol=4)
    assert data.count(b"K\x03\x85") == 1  # the shape (3,)
    for length in (b"\x02", b"\x04"):
        path.write_bytes(data.replace(b"K\x03\x85", b"K" + length + b"\x85"))
        with pytest.raises(CorruptResultError):
            load_results(path)


@pytest.mark.parametrize("protocol", [2, 4, 5])
def test_damaged_files_give_a_dict_or_one_of_the_two_errors(tmp_path, monkeypatch, protocol):
    monkeypatch.chdir(tmp_path)
    generator = np.random.default_rng(protocol)
    whole = pickle.dumps(example_results() | {"x": Calls(os.mkdir, "executed")}, protocol=protocol)
    path = tmp_path / "a.pickle"
    for _ in range(700):
        data = bytearray(whole)
        if generator.random() < 0.2:
            data = data[: generator.integers(len(data))]
        for _ in range(generator.integers(1, 5)):
            if data:
                data[generator.integers(len(data))] = generator.integers(256)
        path.write_bytes(data)
        try:
            assert type(load_results(path)) is dict
        except (UnsafeResultError, CorruptResultError) as error:
            assert str(path) in str(error)
    assert names(tmp_path) == ["a.pickle"]
