from pathlib import Path

import pytest
import torch

from experiments._arguments import parse
from experiments._methods import METHODS
from problems import NonlinearOscillators

PROBLEM = NonlinearOscillators()


def test_defaults_are_the_published_run():
    problem, settings, options = parse(PROBLEM, "hig", [])
    assert problem == PROBLEM
    assert (settings.batch_size, settings.lr, settings.rcond) == (128, 1.0, 1e-6)
    assert (settings.kappa, settings.engine, settings.step_rule) == (-0.5, "auto", "fixed")
    assert settings.published
    assert (options.epochs, options.time_budget) == (None, 3600.0)
    assert (options.seed, options.device, options.dtype) == (0, "cpu", "float32")
    assert options.out == Path("results/nonlinear_oscillators")
    assert not options.quiet


def test_everything_can_be_set():
    line = (
        "--epochs 3 --seed 5 --batch-size 64 --lr 2 --rcond 1e-4 --kappa=-0.75 --engine rows "
        "--step-rule trust --device cpu --dtype float64 --out there --quiet "
        "--oscillators 5 --dt 0.1"
    )
    problem, settings, options = parse(PROBLEM, "hig", line.split())
    assert problem == NonlinearOscillators(oscillators=5, dt=0.1)
    assert (settings.batch_size, settings.lr, settings.rcond) == (64, 2.0, 1e-4)
    assert (settings.kappa, settings.engine, settings.step_rule) == (-0.75, "rows", "trust")
    assert not settings.published
    assert (options.epochs, options.time_budget, options.seed) == (3, None, 5)
    assert (options.dtype, options.out, options.quiet) == ("float64", Path("there"), True)


def test_damping_is_an_option_of_levenberg_marquardt():
    _, settings, _ = parse(PROBLEM, "lm", ["--damping", "0.5", "--time-budget", "2.5"])
    assert settings.damping == 0.5
    assert settings.rcond is None


@pytest.mark.parametrize(
    ("method", "line", "message"),
    [
        ("hig", "--epochs 0", "--epochs: must be at least 1, got 0"),
        ("hig", "--epochs two", "--epochs: must be a whole number, got 'two'"),
        ("hig", "--epochs 1 --time-budget 2", "not allowed with argument --epochs"),
        ("hig", "--time-budget -1", "--time-budget: must be positive and finite, got -1"),
        ("hig", "--lr nan", "--lr: must be positive and finite, got nan"),
        ("hig", "--rcond 2", "--rcond: must be in [0, 1), got 2; 1e-6 suits"),
        ("hig", "--kappa -2", "--kappa: must be in [-1, 1], got -2"),
        ("hig", "--seed -1", "--seed: must be from 0"),
        ("hig", "--step-rule fast", "invalid choice: 'fast'"),
        ("hig", "--damping 1", "unrecognized arguments: --damping"),
        ("adam", "--rcond 1e-6", "unrecognized arguments: --rcond"),
        ("gn", "--kappa -0.5", "unrecognized arguments: --kappa"),
        ("adam", "--device tpu", "--device: must be cpu, cuda or cuda:K, got 'tpu'"),
        ("adam", "--device cuda:99", "cuda:99 is not available"),
        ("adam", "--dtype float16", "invalid choice: 'float16'"),
        ("adam", "--oscillators 0", "--oscillators: must be at least 1, got 0"),
        ("adam", "--dt -0.5", "--dt: must be positive and finite, got -0.5"),
    ],
)
def test_errors(method, line, message, capsys):
    with pytest.raises(SystemExit) as stop:
        parse(PROBLEM, method, line.split())
    assert stop.value.code == 2
    assert message in capsys.readouterr().err


def test_unavailable_device_names_the_remedy(monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(SystemExit):
        parse(PROBLEM, "hig", ["--device", "cuda"])
    assert "cuda is not available" in (error := capsys.readouterr().err)
    assert "use --device cpu" in error


@pytest.mark.parametrize("method", METHODS)
def test_help_shows_the_defaults(method, capsys):
    with pytest.raises(SystemExit) as stop:
        parse(PROBLEM, method, ["--help"])
    text = capsys.readouterr().out
    settings = PROBLEM.settings[method]
    assert stop.value.code == 0
    assert f"samples per step (default: {settings.batch_size})" in text
    assert f"step size (default: {settings.lr})" in text
    assert "published budget of 3600 s" in text
    assert ("published settings" in text) == settings.published
    assert "(default: None)" not in text
