"""Steps of two revisions side by side; here both are this one."""

import json

import pytest

from experiments import revisions
from experiments._measure import revision_worker


def test_table_and_json(tmp_path, capsys):
    file = tmp_path / "revisions.json"
    line = [str(revisions.HERE), "conditioning_toy:4", "--rounds", "2", "--sketch", "1"]
    revisions.main([*line, "--label", "same", "--json", str(file)])
    report, printed = json.loads(file.read_text()), capsys.readouterr().out
    case = report["cases"]["conditioning_toy"]
    rows = {row["step"]: row for row in case["steps"]}
    assert (case["batch_size"], case["sketch"]) == (4, 1)
    assert list(rows) == ["exact", "sketch", "adam", "exact, other revision"]
    assert rows["exact, other revision"]["speedup"] == 1
    for step, row in rows.items():
        assert row["rounds"] == 2 and row["speedup"] > 0 and row["peak_mb"] >= 0
        assert f"| {step} | 2 |" in printed
    assert report["machine"]["other revision"] == "same"


def test_networks_and_steps_of_levenberg_marquardt():
    rows = revisions.compare(revisions.HERE, "time_first", 12, ["exact", "lm"], 1, 1)
    names = ["exact", "lm", "exact, other revision", "lm, other revision"]
    assert [row["step"] for row in rows] == names
    assert [row["speedup"] for row in rows[2:]] == [1, 1]


@pytest.mark.parametrize("step", revisions.STEPS)
def test_steps_of_a_worker(step):
    request = {"case": "problems:ConditioningToy", "step": step, "sketch": 1}
    take = revision_worker.step_of(request, 3)
    assert float(take() if step != "adam" else 1) > 0


def test_a_step_that_fails(capfd):
    with (
        pytest.raises(RuntimeError, match="a step failed, with status 1"),
        revisions.working(revisions.HERE, {"case": "problems:Nothing", "batch": 1}),
    ):
        pass
    assert "has no attribute 'Nothing'" in capfd.readouterr().err


def test_unknown_cases(capsys):
    with pytest.raises(SystemExit):
        revisions.main([str(revisions.HERE), "nothing:3"])
    assert "must be one of field, pinn, " in capsys.readouterr().err
