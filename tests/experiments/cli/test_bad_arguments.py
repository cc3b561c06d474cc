"""Every option of every command refuses what it cannot take: in a line, before anything is run."""

from pathlib import Path

import pytest

from experiments import __main__ as command
from experiments import benchmark, phases, scaling, shared_step, step_time, submit
from experiments._cli import submit as submit_module
from experiments._cli.arguments import _parser
from experiments._methods import METHODS
from experiments._problems import FOLDERS, make
from problems import NonlinearOscillators
from tests.experiments.runs import TINY

NO_NUMBERS = ("x", "", "nan", "inf", "--")
PARSERS = [("nonlinear_oscillators", method) for method in NonlinearOscillators.settings]
PARSERS += [(folder, None) for folder in FOLDERS if folder != "nonlinear_oscillators"]


def options_of(folder, method):
    problem = make(folder)
    method = method or next(iter(problem.settings))
    parser = _parser(problem, method, METHODS[method].complete(problem.settings[method]))
    return parser, [action for action in parser._actions if action.dest != "help"]


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


@pytest.mark.parametrize(("folder", "method"), PARSERS)
def test_options_of_submit_scripts(folder, method, capsys):
    parser, actions = options_of(folder, method)
    assert len(actions) > 15
    for action in actions:
        if takes_any_text(action):
            continue
        for bad in NO_NUMBERS:
            flag = action.option_strings[0]
            assert flag in refused(parser.parse_args, [f"{flag}={bad}"], capsys)


@pytest.mark.parametrize("folder", ["nonlinear_oscillators", "multitask/celeba"])
def test_paths_of_submit_scripts(folder, tmp_path, capsys):
    (tmp_path / "file").write_text("no folder")
    _, actions = options_of(folder, "adam")
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


@pytest.mark.parametrize("value", ["99999999999999999999", "9" * 5000])
def test_counts_beyond_all_memory(value, tmp_path, capsys):
    def run(line):
        submit(TINY, "adam", line)

    for option in ("--train-size", "--batch-size", "--epochs"):
        assert option in refused(run, [f"--out={tmp_path}", f"{option}={value}"], capsys)


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
    "list": lambda line: command.main(["list", *line]),
    "compare": lambda line: command.main(["compare", *line]),
    "export": lambda line: command.main(["export", *line]),
    "benchmark": benchmark.main,
    "phases": phases.main,
    "scaling": scaling.main,
    "step_time": step_time.main,
    "shared_step": shared_step.main,
}
LINES = [
    ("list", "--problem=--", "--problem: must have a value, got '--'"),
    ("compare", "x --target=--", "--target: must have a value, got '--'"),
    ("benchmark", "--rounds=--", "--rounds: must have a value, got '--'"),
    ("list", "--problem x", "unknown problem 'x'"),
    ("list", "--json x", "unrecognized arguments: x"),
    ("compare", "", "required: RESULTS"),
    ("compare", "missing", "no result file missing"),
    ("compare", "file", "file (9 bytes) is not a whole result file"),
    ("compare", "x --target nan", "--target: must be a finite number, got 'nan'"),
    ("compare", "x --quantity both", "invalid choice: 'both'"),
    ("export", "x", "required: --to"),
    ("export", "x --to xml", "invalid choice: 'xml'"),
    ("export", "file --to json", "is not a whole result file"),
    ("export", "x --to json --out file", "--out must be a folder"),
    ("benchmark", "x", "must be one of nonlinear_oscillators"),
    ("benchmark", "--rounds -1", "--rounds: must be at least 1, got -1"),
    ("benchmark", "--batch-size 0", "--batch-size: must be at least 1, got 0"),
    ("benchmark", "conditioning_toy --batch-size 2000", "at most 1024, .* got 2000; give 1024"),
    ("benchmark", "--device meta", "--device: must be cpu, cuda"),
    ("benchmark", "--clock x", "invalid choice: 'x'"),
    ("benchmark", "--json .", "--json must be a file, got the folder"),
    ("benchmark", "--json file/x", "the folder of --json must be a folder"),
    ("benchmark", "--busy -1", "--busy: must be at least 1, got -1"),
    ("benchmark", "--memory=x", "ignored explicit argument 'x'"),
    ("benchmark", "--peers=x", "ignored explicit argument 'x'"),
    ("phases", "x", "invalid choice: 'x'"),
    ("phases", "--rounds 0", "--rounds: must be at least 1, got 0"),
    ("phases", "--device cuda:x", "--device: must be cpu, cuda"),
    ("phases", "--threads 100000", "--threads: must be at most"),
    ("phases", "--json .", "--json must be a file, got the folder"),
    ("phases", "--json file/x", "the folder of --json must be a folder"),
    ("scaling", "x", "invalid choice: 'x'"),
    ("scaling", "rows --methods x", "invalid choice: 'x'"),
    ("scaling", "rows --sizes 8 6", "rows must be a multiple of 4, .* got 6; try 24"),
    ("scaling", "rows --sizes 0", "--sizes: must be at least 1, got 0"),
    ("scaling", "parameters --rows 6", "rows must be a multiple of 4, .* got 6; try 24"),
    ("scaling", "rows --parameters 0", "--parameters: must be at least 1, got 0"),
    ("scaling", "rows --rounds 0", "--rounds: must be at least 1, got 0"),
    ("scaling", "rows --device x", "--device: must be cpu, cuda"),
    ("scaling", "rows --threads 0", "--threads: must be at least 1, got 0"),
    ("scaling", "rows --out file", "--out must be a folder"),
    ("step_time", "x", "invalid choice: 'x'"),
    ("step_time", "conditioning_toy --methods x", "invalid choice: 'x'"),
    ("step_time", "conditioning_toy --batch-sizes -4", "must be at least 1, got -4"),
    ("step_time", "conditioning_toy --rounds x", "must be a whole number, got 'x'"),
    ("step_time", "conditioning_toy --memory nan", "must be positive and finite, got nan"),
    ("step_time", "conditioning_toy --device x", "--device: must be cpu, cuda"),
    ("step_time", "conditioning_toy --threads 100000", "--threads: must be at most"),
    ("step_time", "conditioning_toy --out file", "--out must be a folder"),
    ("shared_step", "x", "invalid choice: 'x'"),
    ("shared_step", "nonlinear_oscillators --batch-size 0", "must be at least 1, got 0"),
    ("shared_step", "nonlinear_oscillators --batch-size 5000", "at most 4096, .* got 5000"),
    ("shared_step", "nonlinear_oscillators --engine x", "invalid choice: 'x'"),
    ("shared_step", "nonlinear_oscillators --rounds 0", "must be at least 1, got 0"),
]


@pytest.mark.parametrize(("name", "line", "message"), LINES)
def test_options_of_commands(name, line, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("no folder")
    found = refused(COMMANDS[name], line.split(), capsys)
    start, _, end = message.partition(".* ")
    assert start in found and end in found
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_every_option_of_a_command_has_a_line():
    parsers = {
        "benchmark": benchmark._parser(),
        "phases": phases._parser(),
        "scaling": scaling._parser(),
        "step_time": step_time._parser(),
    }
    for name, parser in parsers.items():
        tried = {word.partition("=")[0] for command, line, _ in LINES if command == name
                 for word in line.split()}  # fmt: skip
        flags = {action.option_strings[-1] for action in parser._actions if action.option_strings}
        assert flags - {"--help"} <= tried, name


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
