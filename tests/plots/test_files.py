"""The command line that all figures share: formats, help, and errors without a traceback."""

import os
import pickle
import subprocess
import sys
from itertools import product
from pathlib import Path

import numpy as np
import pytest

from plots import (
    density,
    fields,
    landscape,
    loss,
    populations,
    rank,
    saturation,
    solution,
    spectrum,
    step_time,
    target,
    trajectory,
)
from plots._files import PlotError, ResultFile, load, newest

OF_SOLUTIONS = [solution]
OTHERS = [
    density, fields, landscape, loss, populations, rank, saturation, spectrum, step_time, target,
    trajectory,
]  # fmt: skip
FIGURES = [*OTHERS, *OF_SOLUTIONS]
MAGIC = {".png": b"\x89PNG", ".pdf": b"%PDF", ".svg": b"<?xml"}


@pytest.fixture
def paths(full_run, solved_run):
    """A result file for every figure."""
    solved = str(solved_run("solved").path)
    return {figure: solved if figure in OF_SOLUTIONS else full_run for figure in FIGURES}


@pytest.mark.parametrize(
    ("figure", "suffix"),
    [*product(FIGURES[:1], MAGIC), *product(FIGURES[1:-1], [".svg"]), *product([solution], MAGIC)],
)
def test_writes_the_format_of_the_suffix(figure, suffix, paths, tmp_path, capsys):
    out = tmp_path / "new" / f"figure{suffix}"
    assert figure.main([paths[figure], "--out", str(out)]) == 0
    assert out.read_bytes().startswith(MAGIC[suffix])
    assert capsys.readouterr().out == f"figure written to {out}\n"


@pytest.mark.parametrize("figure", FIGURES)
def test_help(figure, capsys):
    with pytest.raises(SystemExit) as stop:
        figure.main(["--help"])
    assert stop.value.code == 0
    text = capsys.readouterr().out
    name = figure.__name__.split(".")[-1]
    assert f"usage: python -m plots.{name}" in text
    assert f"  python -m plots.{name} " in text
    assert figure.__doc__.strip() in " ".join(text.split())


def test_figures_need_no_problem_and_no_window(paths, tmp_path):
    named = {figure.__name__.split(".")[-1]: path for figure, path in paths.items()}
    code = (
        f"import sys; from plots import {', '.join(named)}\n"
        f"for figure, path in zip([{', '.join(named)}], {[*named.values()]!r}, strict=True):\n"
        f"    assert figure.main([path, '--out', {str(tmp_path / 'a.png')!r}]) == 0\n"
        "assert not {'problems', 'experiments', 'matplotlib.pyplot'} & set(sys.modules)"
    )
    root = Path(loss.__file__).parents[1]
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=root)
    assert done.returncode == 0, done.stderr


def test_module_entry_point(full_run, tmp_path):
    out = tmp_path / "figure.png"
    command = [sys.executable, "-m", "plots.loss", full_run, "--out", str(out)]
    root = Path(loss.__file__).parents[1]
    done = subprocess.run(command, check=True, cwd=root, capture_output=True, text=True)
    assert done.stdout == f"figure written to {out}\n"
    assert done.stderr == ""


def test_names_of_a_file():
    named = ResultFile(Path("a.pickle"), {"label": "GN (trust)", "method": "Gauss-Newton"})
    assert (named.label, named.method, named.problem) == ("GN (trust)", "gn", "")
    bare = ResultFile(Path("oscillators_Adam_512.pickle"), {})
    assert (bare.label, bare.method) == ("oscillators_Adam_512", "adam")
    assert ResultFile(Path("my run.pickle"), {}).method == "myrun"


def test_of_two_files_of_one_run_the_newest_is_taken(run_file, capsys):
    files = [run_file(name, seed=seed) for name, seed in (("a", 0), ("b", 1), ("c", 0), ("d", 0))]
    for file, seconds in zip(files, (100, 300, 400, 200), strict=True):
        os.utime(file.path, (seconds, seconds))
    assert newest(files) == files[1:3]
    printed = capsys.readouterr().err.splitlines()
    assert [line.split(" is left out")[0] for line in printed] == [
        f"note: {files[0].path}", f"note: {files[3].path}",
    ]  # fmt: skip
    assert f"{files[2].path} has the same label 'HIG' and seed 0" in printed[0]
    assert newest(files[:2]) == files[:2]
    assert len(newest([files[0]] * 2)) == 1


def test_runs_that_differ_in_anything_else_all_stay(run_file, capsys):
    files = [
        run_file("a"),
        run_file("b", problem="poisson"),
        run_file("c", label="HIG (trust)"),
        run_file("d", method="gn"),
        run_file("e", sim_par={"init_from": "results/adam_seed0_network.weights"}),
        run_file("f", seed=None),
        run_file("g", seed=None),
    ]
    assert newest(files) == files
    assert not capsys.readouterr().err


def test_arrays_of_a_file(tmp_path):
    file = ResultFile(Path("a.pickle"), {"text": "abc", "empty": [], "deep": {"list": [1, 2]}})
    np.testing.assert_array_equal(file.array("deep.list", 1, ""), [1.0, 2.0])
    with pytest.raises(PlotError, match=r"'text' in a.pickle is not an array of numbers"):
        file.array("text", 1, "")
    with pytest.raises(PlotError, match=r"found shape \(0,\)"):
        file.array("empty", 1, "")
    with pytest.raises(PlotError, match=r"no 'deep\.other'.* Try again"):
        file.get("deep.other", "Try again")
    with pytest.raises(PlotError, match=tmp_path.name):
        load(tmp_path)


ODD = {
    "formula": {"label": "HIG $\\frac{$", "problem": "$x_{$"},
    "half a pair": {"label": "a \udcff"},
    "control": {"label": "\x1b[2J a\n"},
    "long": {"label": "x" * 100_000},
    "nested": {"label": [[[1]]], "method": ["a"], "seed": 1 << 20_000},
    "complex": {"test_loss": np.ones(3) + 1j},
    "huge": {"test_loss": [10**400] * 3},
}


@pytest.mark.parametrize("name", ODD)
def test_contents_that_no_run_writes(name, tmp_path, capsys):
    results = {"label": "HIG", "seed": 0, "time": np.arange(3.0), "test_loss": np.ones(3)}
    path, out = tmp_path / "odd.pickle", tmp_path / "figure.png"
    path.write_bytes(pickle.dumps(results | ODD[name]))
    status = loss.main([str(path), str(path), "--out", str(out)])
    printed = capsys.readouterr().err
    assert printed.replace("\n", "").isprintable()
    if name in ("complex", "huge"):
        (*_, last) = printed.splitlines()
        assert status == 2 and "is not an array of numbers: " in last
    else:
        assert status == 0 and out.exists()
