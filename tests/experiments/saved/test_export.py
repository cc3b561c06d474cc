import json
import math

import numpy as np
import pytest

import hig
from experiments import __main__ as command
from experiments._saved.export import as_json, as_npz
from experiments._saved.result_files import ResultFileError
from tests.experiments.made import results_of_a_run, save

ARRAYS = {
    "float32": np.array([[0.1, np.nan], [np.inf, -1e-30]], dtype=np.float32),
    "float64": np.array([0.1, 1e-300, -np.inf]),
    "fortran": np.asfortranarray(np.arange(6.0).reshape(2, 3)),
    "swapped": np.arange(3, dtype=">i4"),
    "complex": np.array([1 + 2j, complex(0, np.nan)]),
    "flags": np.array([True, False]),
    "names": np.array(["α", "beta"]),
    "empty": np.zeros((0, 4)),
    "scalar": np.array(2.5),
}
NUMBERS = {"int": 3, "float": 0.1, "bool": True, "complex": 1 - 2j, "half": np.float16(0.1)}
TEXTS = {"label": "HIG (trust)", "nothing": None, "bytes": b"\xff\x00", "notes": ["a", "b"]}


def strict(text):
    def refuse(constant):
        raise AssertionError(f"{constant} is no JSON")

    return json.loads(text, parse_constant=refuse)


def loaded(data, tmp_path):
    (tmp_path / "a.npz").write_bytes(data)
    with np.load(tmp_path / "a.npz", allow_pickle=False) as archive:
        return dict(archive)


def test_npz_holds_arrays_bit_for_bit(tmp_path):
    data, left_out = as_npz({**ARRAYS, "deep": {"er": {"array": ARRAYS["float64"]}}})
    found = loaded(data, tmp_path)
    assert set(found) == {*ARRAYS, "deep.er.array"} and not left_out
    for key, array in ARRAYS.items():
        assert found[key].dtype == array.dtype and found[key].shape == array.shape
        assert found[key].tobytes() == array.tobytes()


def test_npz_holds_numbers_and_lists_of_them_under_keys_with_dots(tmp_path):
    data, left_out = as_npz({"sim_par": NUMBERS, "list": [1, 2.5], "pairs": ((1, 2), (3, 4))})
    found = loaded(data, tmp_path)
    assert not left_out
    for key, number in NUMBERS.items():
        assert found[f"sim_par.{key}"][()] == number
    assert found["list"].tolist() == [1.0, 2.5] and found["pairs"].shape == (2, 2)


def test_npz_leaves_out_what_is_no_number(tmp_path):
    others = {"ragged": [[1], [1, 2]], "large": 2**70, "mixed": [1, None], "set": {1}, "none": []}
    data, left_out = as_npz({**TEXTS, **others, "sim_par": {"out": "results"}, "seed": 0})
    assert left_out == [*TEXTS, *others, "sim_par.out"]
    assert list(loaded(data, tmp_path)) == ["seed"]


@pytest.mark.parametrize("key", ["file", "allow_pickle", "arr_0", "self", "a/b", "a.npy", "öl"])
def test_any_key_will_do(key, tmp_path):
    data, _ = as_npz({key: np.arange(3)})
    assert loaded(data, tmp_path)[key].tolist() == [0, 1, 2]
    assert strict(as_json({key: np.arange(3)})) == {key: [0, 1, 2]}


def test_json_gives_back_all_numbers():
    found = strict(as_json({"arrays": ARRAYS, "numbers": NUMBERS, "empty": {}}))
    assert found["empty"] == {}
    for key in ("float32", "float64", "fortran", "swapped", "scalar"):
        read = np.asarray(found["arrays"][key], dtype=float)  # "NaN", "Infinity": as float() reads
        np.testing.assert_array_equal(read, ARRAYS[key].astype(float))
    parts = np.asarray(found["arrays"]["complex"], dtype=float)
    np.testing.assert_array_equal(parts, ARRAYS["complex"].view(float).reshape(2, 2))
    assert found["arrays"]["flags"] == [True, False]
    assert found["numbers"]["complex"] == [1.0, -2.0]
    assert found["numbers"]["half"] == float(np.float16(0.1))
    assert {key: found["numbers"][key] for key in ("int", "float", "bool")} == {
        "int": 3, "float": 0.1, "bool": True,
    }  # fmt: skip


def test_json_of_everything_else():
    found = strict(as_json({**TEXTS, "set": {"b", "a"}, "nan": math.nan, "tuple": (1, -math.inf)}))
    assert found == {
        "label": "HIG (trust)", "nothing": None, "bytes": "/wA=", "notes": ["a", "b"],
        "set": ["a", "b"], "nan": "NaN", "tuple": [1, "-Infinity"],
    }  # fmt: skip
    assert strict(as_json({"x": np.longdouble(0.5), "y": np.array([1], np.clongdouble)})) == {
        "x": 0.5, "y": [[1.0, 0.0]],
    }  # fmt: skip


def test_keys_that_are_the_same_as_texts():
    with pytest.raises(ResultFileError, match=r"two keys of 'a\.b' are the same.* among 1;"):
        as_json({"a": {"b": {1: 0, "1": 0}}})
    with pytest.raises(ResultFileError, match=r"two values have the key 'a\.b'; rename one"):
        as_npz({"a": {"b": 1}, "a.b": 2})


def test_a_run_there_and_back(tmp_path, capsys):
    path, out = save(tmp_path / "run.pickle"), tmp_path / "new" / "folder"
    assert command.main(["export", str(path), "--to", "json"]) == 0
    assert command.main(["export", str(tmp_path), "--to", "npz", "--out", str(out)]) == 0
    printed = capsys.readouterr()
    assert printed.out.splitlines() == [
        f"{path} written to {tmp_path / 'run.json'}", f"{path} written to {out / 'run.npz'}",
    ]  # fmt: skip
    assert "only in JSON files: problem, method, label, stopped, sim_par.init_from" in printed.err
    expected = results_of_a_run()
    found = strict((tmp_path / "run.json").read_text(encoding="utf-8"))
    assert list(found) == list(expected)
    assert found["sim_par"] == expected["sim_par"] and found["label"] == "HIG"
    with np.load(out / "run.npz") as arrays:
        for key in ("test_loss", "time"):
            assert arrays[key].tobytes() == expected[key].tobytes()
            assert found[key] == expected[key].tolist()
        assert arrays["machine.threads"] == 1
    assert hig.load_results(path)["seed"] == 0


def test_files_that_would_go_over_others(tmp_path, capsys):
    paths = [str(save(tmp_path / name / "run.pickle")) for name in "ab"]
    assert command.main(["export", *paths, "--to", "json", "--out", str(tmp_path)]) == 2
    assert "would both be written to" in capsys.readouterr().err
    assert not list(tmp_path.glob("*.json"))
    assert command.main(["export", *paths, paths[0], "--to", "json"]) == 0
    misnamed = save(tmp_path / "run.npz")
    assert command.main(["export", str(misnamed), "--to", "npz"]) == 2
    assert "would be written over itself" in capsys.readouterr().err
    assert hig.load_results(misnamed)["seed"] == 0


def test_errors_have_no_traceback(tmp_path, capsys):
    path = tmp_path / "clash.pickle"
    hig.save_results(path, {"a": {"b": 1}, "a.b": 2})
    assert command.main(["export", str(path), "--to", "npz"]) == 2
    assert capsys.readouterr().err.startswith(f"error: {path}: two values have the key 'a.b'")
