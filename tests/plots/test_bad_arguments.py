"""Every option of every figure refuses what it cannot take, in a line."""

from importlib import import_module

import pytest

import hig

FIGURES = [
    "ablation", "density", "fields", "flow", "landscape", "loss", "populations", "rank",
    "robustness", "saturation", "scaling", "smoke", "solution", "spectrum", "step_time", "target",
    "trajectory",
]  # fmt: skip
OUT = "--out=figure.png"
EVERY = [
    ([], "required: RESULTS, --out"),
    (["run.pickle"], "required: --out"),
    (["run.pickle", "--out=figure.txt"], "must end in one of .png, .pdf, .svg, got 'figure.txt'"),
    (["run.pickle", "--out="], "must end in one of .png, .pdf, .svg, got ''"),
    (["missing.pickle", OUT], "no result file missing.pickle"),
    (["", OUT], "is a folder; give a result file"),
    (["file", OUT], "is not a whole result file"),
    (["other.pickle", OUT], "other.pickle has no '"),
    (["other.pickle", OUT], "it has a. "),
    (["run.txt", OUT], "run.txt is not a result file; give run.pickle"),
    (["run.pickle", OUT, "--no-such-option"], "unrecognized arguments: --no-such-option"),
]
LINES = [(figure, *line) for figure in FIGURES for line in EVERY]
LINES += [
    (figure, ["run.pickle", OUT, "--example=x"], "argument --example: invalid int value: 'x'")
    for figure in ("density", "fields", "flow", "populations", "smoke", "trajectory")
]
LINES += [
    ("ablation", ["run.pickle", OUT, "--setting"], "expected at least one argument"),
    ("loss", ["run.pickle", OUT, "--x=hours"], "invalid choice: 'hours'"),
    ("loss", ["run.pickle", OUT, "--x=steps"], "does not say how many steps an epoch has"),
    ("loss", ["run.pickle", OUT, "--quantity=x"], "--quantity can be"),
    ("loss", ["run.pickle", OUT, "--component", "x"], "has no components; leave --component out"),
    ("loss", ["run.pickle", OUT, "--log-x=1"], "ignored explicit argument '1'"),
    ("loss", ["run.pickle", OUT, "--linear=1"], "ignored explicit argument '1'"),
    ("loss", ["run.pickle", "--out=folder.png"], "--out must be a file that can be written"),
    ("loss", ["run.pickle", "--out=file/figure.png"], "--out must be a file that can be written"),
    ("rank", ["run.pickle", OUT, "--x=epochs"], "invalid choice: 'epochs'"),
    (
        "solution",
        ["run.pickle", OUT, "--at", "t"],
        "a coordinate and a value, got 't'; for example t=0.5",
    ),
    ("spectrum", ["run.pickle", OUT, "--moments=0"], "must be a positive whole number, got '0'"),
    ("target", ["run.pickle", OUT, "--target=low"], "must be a finite number, got 'low'"),
]


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    curves = {"test_loss": [1.0, 0.5], "time": [0.0, 1.0], "epochs": [0.0, 1.0]}
    hig.save_results("run.pickle", {"problem": "toy", "method": "adam", "label": "Adam", **curves})
    hig.save_results("other.pickle", {"a": 1})
    (tmp_path / "file").write_text("no folder")
    (tmp_path / "folder.png").mkdir()
    return tmp_path


@pytest.mark.parametrize(("figure", "line", "message"), LINES)
def test_options_of_figures(figure, line, message, folder, capsys):
    try:
        code = import_module(f"plots.{figure}").main(line)
    except SystemExit as stop:
        code = stop.code
    error = capsys.readouterr().err
    assert code == 2
    assert message in error and "error: " in error.splitlines()[-1]
    assert not (folder / "figure.png").exists()
