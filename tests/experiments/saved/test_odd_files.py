"""Files that load, of contents that no run writes: one line or a result, never a traceback."""

import json
import pickle
import re

import numpy as np
import pytest

from experiments import __main__ as command
from tests.experiments.made import results_of_a_run

LOSSES = np.array([1.0, 0.1, 0.01])


def nested(levels):
    value = []
    for _ in range(levels):
        value = [value]
    return value


# Of a depth that Python's own pickler does not write: in the place of these texts.
DEEP = {
    "LIST": b"]" * 600 + b"a" * 599,
    "DICT": b"}X\x01\x00\x00\x00a" * 600 + b"N" + b"s" * 600,
}


def dumped(results):
    data = pickle.dumps(results, protocol=2)
    for name, deep in DEEP.items():
        data = data.replace(b"X\x04\x00\x00\x00" + name.encode(), deep)
    return data


ODD = {
    "huge loss": {"test_loss": [10**400] * 3},
    "complex loss": {"test_loss": LOSSES + 1j},
    "complex time": {"time": [1j, 2j, 3j]},
    "huge seed": {"seed": 1 << 20_000},
    "nested seed": {"seed": nested(400)},
    "nested notes": {"notes": "LIST"},
    "nested dicts": {"notes": "DICT"},
    "huge notes": {"notes": 1 << 20_000},
    "huge key": {"notes": {1 << 20_000: 1.0}},
    "half a pair": {"label": "a \udcff", "a\udc80": np.arange(3)},
    "control": {"label": "\x1b[2Jevil\n| a | b |", "stopped": "\x07epochs", "\x1b[2J": 1.0},
    "long key": {"k" * 70_000: np.arange(3)},
    "long label": {"label": "x" * 100_000},
    "no steps": {"step_time": 3},
    "huge earlier": {"pretraining_time": 10**400},
    "wide": {"wide": np.array([1 + 2j], dtype=np.clongdouble)},
}


@pytest.fixture(params=ODD)
def odd(request, tmp_path):
    path = tmp_path / "odd.pickle"
    path.write_bytes(dumped(results_of_a_run() | ODD[request.param]))
    return path


@pytest.mark.parametrize("line", ["compare", "export --to json", "export --to npz"])
def test_every_command_ends_in_words(line, odd, capsys):
    name, *options = line.split()
    status = command.main([name, str(odd), *options])
    printed = capsys.readouterr()
    shown = printed.out.replace("\n", "") + printed.err.replace("\n", "")
    assert shown.isprintable()
    if status:
        assert status == 2 and printed.out == ""
        assert len(printed.err.splitlines()) == 1 and printed.err.startswith("error: ")
        assert "odd.pickle" in printed.err


def refused(tmp_path, capsys, line, **changes):
    path = tmp_path / "odd.pickle"
    path.write_bytes(dumped(results_of_a_run() | changes))
    assert command.main([line[0], str(path), *line[1:]]) == 2
    return capsys.readouterr().err


def test_what_is_refused(tmp_path, capsys):
    for changes in ({"test_loss": LOSSES + 1j}, {"epochs": LOSSES + 1j}, {"time": [10**400] * 3}):
        text = refused(tmp_path, capsys, ["compare"], **changes)
        assert "losses or times in" in text and "are not numbers" in text
    text = refused(tmp_path, capsys, ["export", "--to", "json"], notes=1 << 20_000)
    assert "holds values that no json file can" in text and not list(tmp_path.glob("*.json"))


@pytest.mark.parametrize("deep", DEEP)
def test_deep_nesting_in_json(deep, tmp_path, capsys):
    """Python 3.11 recurses too deep for it; later ones, with fewer frames, do not."""
    path = tmp_path / "odd.pickle"
    path.write_bytes(dumped(results_of_a_run() | {"notes": deep}))
    if command.main(["export", str(path), "--to", "json"]) == 2:
        assert "holds values that no json file can" in capsys.readouterr().err
        assert not list(tmp_path.glob("*.json"))
    else:
        text = path.with_suffix(".json").read_text()
        assert re.sub(r"\s", "", text).count("[" * 600 if deep == "LIST" else '{"a":' * 600) == 1


def test_half_pairs_in_json(tmp_path):
    path = tmp_path / "odd.pickle"
    path.write_bytes(pickle.dumps(results_of_a_run(label="a \udcff é")))
    assert command.main(["export", str(path), "--to", "json"]) == 0
    assert json.loads(path.with_suffix(".json").read_bytes())["label"] == "a \udcff é"
