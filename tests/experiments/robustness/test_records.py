"""Files of the records."""

import json

import numpy as np
import pytest

import hig
from experiments._robustness.records import (
    done,
    labels,
    load_all,
    read_results,
    results_of,
    save,
)
from experiments._saved.result_files import ResultFileError
from tests.experiments.robustness.made import record


def test_records_are_found_by_their_case_alone(tmp_path):
    whole = record(3, end=None, rcond=1e-6, notes=((1, "a"),))
    save(whole, tmp_path)
    assert done(whole.case, tmp_path) == whole
    assert done(record(4).case, tmp_path) is None
    path = tmp_path / whole.case.place
    found = json.loads(path.read_text())
    path.write_text(json.dumps(found | {"case": found["case"] | {"seconds": 2.0}}))
    assert done(whole.case, tmp_path) is None  # a file that was moved here


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"case": {}, "notes": []}', "null"])
def test_damaged_files_are_no_records(tmp_path, text):
    whole = record()
    save(whole, tmp_path)
    (tmp_path / whole.case.place).write_text(text)
    assert done(whole.case, tmp_path) is None and load_all(tmp_path) == []


def test_all_of_a_label(tmp_path):
    made = [record(seed, label=label) for label in ("b", "a") for seed in (10, 2)]
    for one in [*made, record(1, label="a", problem="cart_pole")]:
        save(one, tmp_path)
    (tmp_path / "a" / ".x.json.tmp").touch()
    assert labels(tmp_path) == ["a", "b"]
    found = load_all(tmp_path, "a")
    assert [(one.case.problem, one.case.seed) for one in found] == [
        ("nonlinear_oscillators", 2), ("nonlinear_oscillators", 10), ("cart_pole", 1),
    ]  # fmt: skip
    assert len(load_all(tmp_path)) == 5


def test_a_result_file_has_all_of_the_records(tmp_path):
    made = [
        record(0, notes=((1, "a"), (4, "b"))),
        record(1, end=None, early=None, steps=7, rcond="auto"),
        record(2, rcond=1e-5, problem="pinn/burgers", method="lm"),
    ]
    path = tmp_path / "runs.pickle"
    hig.save_results(path, {"origin": made[0].origin, **results_of(made)})
    assert read_results(path) == made
    results = hig.load_results(path)
    assert results["label"] == "before" and results["revisions"] == ["def"]
    runs = results["runs"]
    assert np.isnan(runs["end"][1]) and runs["lost"].tolist() == [False, True, False]
    assert runs["limit"].tolist() == [0.1, 1.0, 0.1]
    assert runs["title"][2] == "Physics-informed network: Burgers"
    assert runs["cutoff"] == ["", "auto", "1e-5"]


@pytest.mark.parametrize("change", [{"runs": {}}, {"label": 1}, {"runs": {"seed": [1]}}])
def test_other_result_files(tmp_path, change):
    path = tmp_path / "other.pickle"
    hig.save_results(path, {"a": 1} | change)
    with pytest.raises(ResultFileError, match="has no runs of many seeds; give a result file of"):
        read_results(path)
