import json

import pytest

from experiments import phases


def test_every_phase_has_a_row(tmp_path, capsys):
    path = tmp_path / "phases.json"
    phases.main(["conditioning_toy", "--rounds", "2", "--json", str(path)])
    report = json.loads(path.read_text())
    assert report["origin"].keys() == {"command", "revision", "started"}
    (rows,) = report["problems"].values()
    names = [row["phase"] for row in rows]
    assert names == [
        "forward", "loss gradient", "jacobian", "gram", "decomposition", "direction", "update",
    ]  # fmt: skip
    assert sum(row["share"] for row in rows) == pytest.approx(1)
    gram = rows[names.index("gram")]
    assert gram["calls"] > 0 and gram["gflop"] > 0 and gram["floor_ms"] > 0
    assert gram["above_floor"] == pytest.approx(gram["ms"] / gram["floor_ms"])
    printed = capsys.readouterr().out
    assert "conditioning_toy, medians of 2 steps" in printed and "| gram |" in printed
