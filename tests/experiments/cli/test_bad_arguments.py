"""Every option of every command refuses what it cannot take: in a line, before anything is run."""

from functools import partial
from pathlib import Path

import pytest

from experiments import __main__ as command
from experiments import (
    benchmark,
    derivatives,
    phases,
    revisions,
    scaling,
    shared_step,
    step_time,
    study,
    submit,
)
from experiments._cli import submit as submit_module
from experiments._cli.arguments import _parser, parse
from experiments._methods import METHODS
from experiments._problems import FOLDERS, make
from problems import NonlinearOscillators
from tests.experiments.runs import TINY

NO_NUMBERS = ("x", "", "nan", "inf", "--")


def submit_parser(folder, method=None):
    problem = make(folder)
    method = method or next(iter(problem.settings))
    return _parser(problem, method, METHODS[method].complete(problem.settings[method]))


SUBMIT = [("nonlinear_oscillators", method) for method in NonlinearOscillators.settings]
SUBMIT += [(folder, None) for folder in FOLDERS if folder != "nonlinear_oscillators"]
(SUBCOMMANDS,) = command._parser()._subparsers._group_actions
MEASURING = (benchmark, derivatives, phases, revisions, scaling, shared_step, step_time, study)
PARSERS = {f"{folder} {method or ''}": submit_parser(folder, method) for folder, method in SUBMIT}
PARSERS |= SUBCOMMANDS.choices
PARSERS |= {module.__name__: module._parser() for module in MEASURING}


def takes_any_text(action):
    return action.nargs != 0 and not action.choices and action.type in (None, Path)


def refused(run, line, capsys):
    """The error text of a command line, which must be that of a user's mistake."""
    with pytest.raises(SystemExit) as stop:
        code = run(line)
        raise SystemExit(code)  # commands that return their exit status
    error = capsys.readouterr().err
    if stop.value.code == 2:
        assert "error: " in error.splitlines()[-1]
        return error
    assert str(stop.value.code).startswith("error: ") and "\n" not in stop.value.code
    return stop.value.code


@pytest.mark.parametrize("parser", PARSERS.values(), ids=PARSERS)
def test_every_option_refuses_what_is_not_a_value_of_it(parser, capsys):
    options = [action for action in parser._actions if action.option_strings]
    for action in options:
        if takes_any_text(action) or action.dest == "help":
            continue
        for bad in NO_NUMBERS:
            flag = action.option_strings[-1]
            assert flag in refused(parser.parse_args, [f"{flag}={bad}"], capsys)


@pytest.mark.parametrize("folder", ["nonlinear_oscillators", "multitask/celeba"])
def test_paths_of_submit_scripts(folder, tmp_path, capsys):
    (tmp_path / "file").write_text("no folder")
    actions = submit_parser(folder, "adam")._actions
    problem = TINY if folder == "nonlinear_oscillators" else make(folder)
    paths = [action.option_strings[0] for action in actions if takes_any_text(action)]
    assert {"--out", "--init-from"} <= set(paths)
    for flag in paths:
        line = ["--epochs=1", "--batch-size=8", "--quiet", f"--out={tmp_path}"]

        def run(line):
            submit(problem, "adam", line)

        text = refused(run, [*line, f"{flag}={tmp_path / 'file' / 'x'}"], capsys)
        assert str(tmp_path / "file") in text


@pytest.mark.parametrize("method", ["adam", "lbfgs", "lm", "khig", "hig"])
def test_steps_beyond_all_numbers(method, tmp_path, capsys):
    line = [f"--out={tmp_path}", "--quiet", "--epochs=1", "--batch-size=16"]

    def run(line):
        submit(TINY, method, line)

    for lr in ("1e300", "2e19"):
        assert "at most 1.8e+19 in float32, got" in refused(run, [*line, f"--lr={lr}"], capsys)
    assert "in float64" in refused(run, [*line, "--lr=1e300", "--dtype=float64"], capsys)
    for rule in ["fixed", "trust", "line_search"] if method in ("hig", "lm") else [None]:
        for large in (["--lr=1e19"], ["--lr=1e154", "--dtype=float64"]):
            options = [f"--step-rule={rule}"] if rule else []
            try:
                run([*line, *large, *options])
            except SystemExit as stop:
                assert str(stop.code).startswith("error: non-finite: ")


def test_a_folder_whose_name_is_too_long(tmp_path, capsys):
    for out in (tmp_path / ("x" * 300), tmp_path.joinpath(*["y" * 100] * 60)):
        text = refused(lambda line: submit(TINY, "adam", line), [f"--out={out}"], capsys)
        assert "File name too long; give another one" in text


def test_interruptions_before_the_first_step(tmp_path, monkeypatch, capsys):
    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(submit_module, "run", interrupted)
    with pytest.raises(SystemExit) as stop:
        submit(TINY, "adam", [f"--out={tmp_path}"])
    assert stop.value.code == 130 and capsys.readouterr().err == "interrupted\n"


COMMANDS = {
    **{name: partial(parse, NonlinearOscillators(), name) for name in ("adam", "gn", "hig")},
    "list": lambda line: command.main(["list", *line]),
    "compare": lambda line: command.main(["compare", *line]),
    "export": lambda line: command.main(["export", *line]),
    "benchmark": benchmark.main,
    "phases": phases.main,
    "scaling": scaling.main,
    "step_time": step_time.main,
    "shared_step": shared_step.main,
    "derivatives": derivatives.main,
    "revisions": revisions.main,
}
LINES = [
    ("hig", "--epochs 0", "--epochs: must be at least 1, got 0; give a number such as 10"),
    ("hig", "--epochs 1 --time-budget 2", "not allowed with argument --epochs"),
    ("hig", "--time-budget -1", "--time-budget: must be positive and finite, got -1"),
    ("hig", "--rcond 2", "--rcond: must be in [0, 1), got 2; 1e-6 suits"),
    ("hig", "--kappa -2", "--kappa: must be in [-1, 1], got -2; -0.5 is"),
    ("hig", "--average 1", "--average: must be between 0 and 1, got 1; 0.8 averages"),
    ("hig", "--seed -1", "--seed: must be from 0 to 2**32 - 1, got -1; give a number such as 0"),
    ("hig", "--momentum 1", "--momentum: must be in [0, 1), got 1; 0.9 keeps much"),
    ("hig", "--damping 1", "unrecognized arguments: --damping"),
    ("gn", "--kappa -0.5", "unrecognized arguments: --kappa"),
    ("adam", "--momentum 0.9", "unrecognized arguments: --momentum"),
    ("adam", "--rcond 1e-6", "unrecognized arguments: --rcond"),
    ("adam", "--threads 100000", "--threads: must be at most"),
    ("adam", "--dt -0.5", "--dt: must be positive and finite, got -0.5"),
    ("list", "--problem=--", "--problem: must have a value, got '--'"),
    ("list", "--problem x", "unknown problem 'x'"),
    ("list", "--json x", "unrecognized arguments: x"),
    ("compare", "", "required: RESULTS"),
    ("compare", "missing", "no result file missing"),
    ("compare", "file", "file (9 bytes) is not a whole result file"),
    ("export", "x", "required: --to"),
    ("export", "file --to json", "is not a whole result file"),
    ("export", "x --to json --out file", "--out must be a folder"),
    ("benchmark", "x", "must be one of nonlinear_oscillators, quantum_dipole, poisson"),
    ("benchmark", "regression", "must be one of nonlinear_oscillators, quantum_dipole, poisson"),
    ("benchmark", "poisson --peers", "one of nonlinear_oscillators, quantum_dipole, regression"),
    ("benchmark", "poisson --memory", "must be one of equation, equation_rows, fields"),
    ("benchmark", "--busy 1 --peers", "argument --peers: not allowed with argument --busy"),
    ("benchmark", "--memory --peers", "not allowed with argument"),
    ("benchmark", "--busy -1", "--busy: must be at least 1, got -1"),
    ("benchmark", "conditioning_toy --batch-size 2000", "at most 1024, .* got 2000; give 1024"),
    ("benchmark", "--json .", "--json must be a file, got the folder"),
    ("benchmark", "--json file/x", "the folder of --json must be a folder"),
    ("phases", "x", "invalid choice: 'x'"),
    ("phases", "--json .", "--json must be a file, got the folder"),
    ("scaling", "x", "invalid choice: 'x'"),
    ("scaling", "rows --sizes 8 6", "rows must be a multiple of 4, .* got 6; try 24"),
    ("scaling", "parameters --rows 6", "rows must be a multiple of 4, .* got 6; try 24"),
    ("scaling", "rows --out file", "--out must be a folder"),
    ("scaling", "outputs --sizes 16 100", "multiple of four, got 100; try 64"),
    ("revisions", "missing poisson", "holds no package hig: 'missing'; make a checkout by git"),
    ("revisions", "file poisson", "holds no package hig: 'file'"),
    ("step_time", "x", "invalid choice: 'x'"),
    ("step_time", "conditioning_toy --methods sgd", "has no settings for sgd; it has them for"),
    ("step_time", "conditioning_toy --out file", "--out must be a folder"),
    ("step_time", "conditioning_toy --memory 1e-9 --methods hig --out new", "was measured; give"),
    ("shared_step", "x", "invalid choice: 'x'"),
    ("derivatives", "x", "invalid choice: 'x'"),
    ("shared_step", "nonlinear_oscillators --batch-size 5000", "at most 4096, .* got 5000"),
]


@pytest.mark.parametrize(("name", "line", "message"), LINES)
def test_options_of_commands(name, line, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("no folder")
    found = refused(COMMANDS[name], line.split(), capsys)
    start, _, end = message.partition(".* ")
    assert start in found and end in found
    assert {path.name for path in tmp_path.iterdir() if path.is_file()} == {"file"}


@pytest.mark.parametrize("option", ["--batch-size=17", "--batch-size=1000000"])
def test_batches_beyond_the_training_data_are_refused(option, tmp_path):
    line = ["--epochs=1", "--quiet", f"--out={tmp_path}", option]
    with pytest.raises(SystemExit, match="must be at most 16, the number of training samples"):
        submit(TINY, "adam", line)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("text", ["DefaultCPUAllocator: can't allocate memory: you tried", "other"])
def test_want_of_memory_is_an_error_message(text, tmp_path, monkeypatch):
    def fail(*_):
        raise RuntimeError(text)

    monkeypatch.setattr(submit_module, "run", fail)
    line = ["--epochs=1", f"--out={tmp_path}"]
    if text == "other":  # a failure of the program, not of the user
        with pytest.raises(RuntimeError, match="other"):
            submit(TINY, "adam", line)
        return
    with pytest.raises(SystemExit) as stop:
        submit(TINY, "adam", line)
    assert stop.value.code.startswith("error: not enough memory on cpu: ")
    assert stop.value.code.endswith("give a smaller --batch-size or a smaller problem")
