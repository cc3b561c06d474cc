from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import pytest
import torch

from experiments._cli.arguments import parse
from experiments._methods import METHODS
from problems import NonlinearOscillators
from problems._problem import location, parameter
from problems.multitask import Toy

SINGLE = [name for name, method in METHODS.items() if not method.several_losses]
PROBLEM = NonlinearOscillators()


@dataclass(frozen=True)
class Described(NonlinearOscillators):
    """A parameter of every kind, and a field that is not a parameter."""

    correction: bool = parameter(False, "correct the gradient")
    fast: bool = parameter(True, "hurry")
    target: str = parameter("superposition", "where to go", ["superposition", "state2"])
    secret: int = 7

    def __post_init__(self):
        """Skip the check of numbers: switches are not positive numbers."""


@dataclass(frozen=True)
class Counted(NonlinearOscillators):
    """A number of epochs, and a folder of files."""

    folder: str = location("data", "where the files are")

    epochs: ClassVar[int | None] = 12


def test_defaults_are_the_published_run():
    problem, settings, options = parse(PROBLEM, "hig", [])
    assert problem == PROBLEM
    assert (settings.batch_size, settings.lr, settings.rcond) == (128, 1.0, 1e-6)
    assert (settings.kappa, settings.engine, settings.step_rule) == (-0.5, "auto", "fixed")
    assert settings.published
    assert (options.epochs, options.time_budget) == (None, 3600.0)
    assert (options.seed, options.device, options.dtype) == (0, "cpu", "float32")
    assert options.out == Path("results/nonlinear_oscillators")
    assert (options.quiet, options.summary, options.tensorboard) == (False, False, False)
    assert (options.save_weights, options.init_from) == (False, None)
    assert (options.on_fault, options.max_faults) == ("raise", 10)


def test_everything_can_be_set():
    line = (
        "--epochs 3 --seed 5 --batch-size 64 --lr 2 --rcond 1e-4 --kappa=-0.75 --engine rows "
        "--step-rule trust --momentum 0.9 --momentum-kind projected --device cpu "
        "--dtype float64 --out there --quiet --oscillators 5 --dt 0.1 "
        "--summary --tensorboard --save-weights --init-from a/b.weights --on-fault skip "
        "--max-faults 3"
    )
    problem, settings, options = parse(PROBLEM, "hig", line.split())
    assert problem == NonlinearOscillators(oscillators=5, dt=0.1)
    assert (settings.batch_size, settings.lr, settings.rcond) == (64, 2.0, 1e-4)
    assert (settings.kappa, settings.engine, settings.step_rule) == (-0.75, "rows", "trust")
    assert (settings.momentum, settings.momentum_kind) == (0.9, "projected")
    assert (options.epochs, options.time_budget, options.seed) == (3, None, 5)
    assert (options.dtype, options.out) == ("float64", Path("there"))
    assert (options.quiet, options.summary, options.tensorboard) == (True, True, True)
    assert (options.save_weights, options.init_from) == (True, Path("a/b.weights"))
    assert (options.on_fault, options.max_faults) == ("skip", 3)


def test_a_published_number_of_epochs_is_the_length():
    _, _, options = parse(Counted(), "hig", [])
    assert (options.epochs, options.time_budget) == (12, None)
    _, _, options = parse(Counted(), "hig", ["--epochs=3"])
    assert (options.epochs, options.time_budget) == (3, None)
    _, _, options = parse(Counted(), "hig", ["--time-budget=2"])
    assert (options.epochs, options.time_budget) == (None, 2)


def test_the_folder_of_a_problem():
    assert parse(Counted(), "hig", [])[0].folder == ""
    assert parse(Counted(), "hig", ["--data", "some where"])[0].folder == "some where"


def test_help_of_epochs_and_folder(capsys):
    with pytest.raises(SystemExit):
        parse(Counted(), "hig", ["--help"])
    text = " ".join(capsys.readouterr().out.split())
    assert "one of the two; by default 12 epochs" in text
    assert "--data DIR where the files are" in text
    assert "where the files are (default" not in text


def test_switches_and_texts_of_a_problem():
    problem, _, _ = parse(Described(), "hig", ["--epochs=1"])
    assert problem == Described()
    line = ["--correction", "--no-fast", "--target", "state2", "--oscillators", "3"]
    problem, _, _ = parse(Described(), "hig", line)
    assert problem == Described(oscillators=3, correction=True, fast=False, target="state2")


def test_help_of_switches_and_texts(capsys):
    with pytest.raises(SystemExit):
        parse(Described(), "hig", ["--help"])
    text = " ".join(capsys.readouterr().out.split())
    assert "--correction, --no-correction correct the gradient (default: False)" in text
    assert "--target {superposition,state2} where to go (default: superposition)" in text


@pytest.mark.parametrize("line", ["--secret 8", "--hidden 3", "--rollout loop"])
def test_only_described_fields_are_arguments(line, capsys):
    with pytest.raises(SystemExit):
        parse(Described(), "hig", line.split())
    assert f"unrecognized arguments: {line}" in capsys.readouterr().err


def test_damping_is_an_option_of_levenberg_marquardt():
    _, settings, _ = parse(PROBLEM, "lm", ["--damping", "0.5", "--time-budget", "2.5"])
    assert settings.damping == 0.5
    assert settings.rcond is None


@pytest.mark.parametrize("method", SINGLE)
def test_help_shows_the_defaults(method, capsys):
    with pytest.raises(SystemExit) as stop:
        parse(PROBLEM, method, ["--help"])
    text = capsys.readouterr().out
    settings = PROBLEM.settings[method]
    assert stop.value.code == 0
    assert f"samples per step (default: {settings.batch_size})" in text
    assert f"step size (default: {settings.lr})" in text
    assert "by default a budget of 3600 s" in text
    assert ("published settings" in text) == settings.published
    assert "(default: None)" not in text


@pytest.mark.parametrize(
    ("problem", "line", "message"),
    [
        (PROBLEM, "--oscillators 0", "got 0; give a number such as 2"),
        (PROBLEM, "--dt 0", f"got 0; give a number such as {PROBLEM.dt:g}"),
        (PROBLEM, "--threads 0", "got 0; give a number such as 1"),
        (PROBLEM, "--epochs 0", "got 0; give a number such as 10"),
        (Toy(), "--start 0", "got 0; give a number such as 1"),
    ],
)
def test_what_an_error_proposes_is_taken(problem, line, message, capsys):
    with pytest.raises(SystemExit):
        parse(problem, "adam", line.split())
    error = capsys.readouterr().err
    assert message in error
    parse(problem, "adam", [line.split()[0], error.split()[-1]])


def test_processor_time_is_that_of_one_thread(capsys):
    assert parse(PROBLEM, "hig", [])[2].threads == torch.get_num_threads()
    assert parse(PROBLEM, "hig", ["--clock", "processor"])[2].threads == 1
    assert parse(PROBLEM, "hig", ["--clock", "processor", "--threads", "1"])[2].threads == 1
    with pytest.raises(SystemExit):
        parse(PROBLEM, "hig", ["--clock", "processor", "--threads", "2"])
    assert "of all threads, got 2; give --threads 1 with it" in capsys.readouterr().err
