import json

import hig
from experiments._measure import command


def test_a_table_has_numbers_on_the_right():
    found = command.table({"step": "{case}", " ms": "{ms:.1f}"}, [{"case": "a", "ms": 2.04}])
    assert found == "| step | ms |\n| --- | ---: |\n| a | 2.0 |"


def test_medians_and_ranges():
    found = command.milliseconds([0.003, 0.001, 0.002])
    assert found == {"rounds": 3, "median_ms": 2.0, "min_ms": 1.0, "max_ms": 3.0}
    found = command.seconds_per_step([[1.0, 3.0, 2.0], [4.0, 4.0, 4.0]])
    assert [values.tolist() for values in found.values()] == [[2.0, 4.0], [1.0, 4.0], [3.0, 4.0]]


def test_files(tmp_path, capsys):
    command.save_json(None, {})
    assert capsys.readouterr().out == ""
    command.save_json(tmp_path / "a.json", {"rows": [1]})
    assert json.loads((tmp_path / "a.json").read_text()) == {"rows": [1]}
    paths = [tmp_path / name for name in ("a.pickle", "b.pickle")]
    command.save_results("scaling", {"command": "c"}, {path: {"size": 1} for path in paths})
    assert hig.load_results(paths[1]) == {"origin": {"command": "c"}, "size": 1}
    line = f"python -m plots.scaling {paths[0]} {paths[1]} --out {tmp_path / 'scaling.png'}"
    assert line in capsys.readouterr().out
