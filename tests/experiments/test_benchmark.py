import json

import pytest

from experiments import benchmark


def test_table_and_json(tmp_path, capsys):
    file = tmp_path / "new folder" / "benchmark.json"
    benchmark.main(
        ["nonlinear_oscillators", "--rounds", "1", "--batch-size", "2", "--json", str(file)]
    )
    printed = capsys.readouterr().out
    report = json.loads(file.read_text())
    (problem,) = report["problems"].values()
    rows = {row["case"]: row for row in problem["cases"]}
    assert problem["batch_size"] == 2
    assert rows[benchmark.TEXTBOOK]["speedup"] == 1
    assert rows[benchmark.ADAM]["of_adam"] == 1
    for case, row in rows.items():
        assert row["min_ms"] <= row["median_ms"] <= row["max_ms"]
        assert row["peak_mb"] >= 0
        assert f"| {case} |" in printed
    assert report["machine"]["torch"] in printed


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["unknown"], "must be one of nonlinear_oscillators, quantum_dipole"),
        (["--rounds", "0"], "must be at least 1, got 0"),
        (["--device", "tpu"], "must be cpu, cuda"),
    ],
)
def test_bad_arguments(arguments, message, capsys):
    with pytest.raises(SystemExit):
        benchmark.main(arguments)
    assert message in capsys.readouterr().err
