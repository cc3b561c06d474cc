import subprocess
import sys
from pathlib import Path

import pytest

import experiments
from experiments import __main__ as command

COMMANDS = ["list", "compare", "export", "keep", "report"]


@pytest.mark.parametrize("arguments", [[], *([name] for name in COMMANDS)])
def test_help(arguments, capsys):
    with pytest.raises(SystemExit) as stop:
        command.main([*arguments, "--help"])
    assert stop.value.code == 0
    text = capsys.readouterr().out
    assert f"usage: {' '.join(['python -m experiments', *arguments])} " in text
    assert all(name in text for name in arguments or COMMANDS)


@pytest.mark.parametrize(("arguments", "text"), [([], "required: COMMAND"), (["run"], "'run'")])
def test_a_command_is_needed(arguments, text, capsys):
    with pytest.raises(SystemExit) as stop:
        command.main(arguments)
    assert stop.value.code == 2
    assert text in capsys.readouterr().err


def test_module_entry_point_and_its_exit_status(tmp_path):
    line = [sys.executable, "-m", "experiments", "compare", str(tmp_path)]
    root = Path(experiments.__file__).parents[1]
    done = subprocess.run(line, cwd=root, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr == (
        f"error: {tmp_path} has no result files (*.pickle) in it; give another folder\n"
    )


@pytest.mark.parametrize("reader", ["true", "head -n 1"])
def test_a_reader_that_has_seen_enough(reader):
    root = Path(experiments.__file__).parents[1]
    line = f"{sys.executable} -m experiments list | {reader}"
    done = subprocess.run(line, shell=True, cwd=root, capture_output=True, text=True, check=False)
    assert done.returncode == 0 and done.stderr == ""


def test_interruptions_are_reported_in_a_word(monkeypatch, capsys):
    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(command.catalogue, "entry", interrupted)
    assert command.main(["list"]) == 130
    assert capsys.readouterr().err == "interrupted\n"
