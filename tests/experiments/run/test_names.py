from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from experiments import Options
from experiments._run.names import deviations, label, path
from problems import NonlinearOscillators
from problems._problem import location, parameter

PROBLEM = NonlinearOscillators()


@dataclass(frozen=True)
class Switched(NonlinearOscillators):
    projection_correction: bool = parameter(False, "correct")
    fast_steps: bool = parameter(True, "hurry")
    target: str = parameter("superposition", "where to", ["superposition", "state2"])

    def __post_init__(self):
        """Skip the check of numbers: switches are not positive numbers."""


OPTIONS = Options(out=Path("out"), epochs=1, seed=4)
HIG = PROBLEM.settings["hig"]


def test_default_run_has_no_variant():
    longer = replace(OPTIONS, epochs=7, seed=1, quiet=True, out=Path("elsewhere"))
    explicit = replace(HIG, kappa=-0.5, step_rule="fixed", published=False)
    assert deviations(PROBLEM, "hig", explicit, longer) == []
    assert label("hig", []) == "HIG"
    assert path(PROBLEM, "hig", [], OPTIONS) == Path("out/nonlinear_oscillators_hig_seed4.pickle")


@pytest.mark.parametrize(
    ("settings", "name", "file"),
    [
        ({"step_rule": "trust"}, "HIG (trust)", "hig_trust"),
        ({"lr": 8.0, "step_rule": "trust"}, "HIG (lr 8, trust)", "hig_lr8_trust"),
        ({"momentum": 0.9}, "HIG (momentum 0.9)", "hig_momentum0.9"),
        (
            {"step_rule": "trust", "momentum": 0.5, "momentum_kind": "projected"},
            "HIG (trust, momentum 0.5, projected)",
            "hig_trust_momentum0.5_projected",
        ),
        ({"kappa": -0.75}, "HIG (kappa -0.75)", "hig_kappa-0.75"),
        ({"batch_size": 64, "rcond": 1e-4}, "HIG (batch 64, rcond 0.0001)", None),
    ],
)
def test_changed_settings(settings, name, file):
    differences = deviations(PROBLEM, "hig", replace(HIG, **settings), OPTIONS)
    assert label("hig", differences) == name
    if file:
        expected = Path(f"out/nonlinear_oscillators_{file}_seed4.pickle")
        assert path(PROBLEM, "hig", differences, OPTIONS) == expected


def test_a_graft_is_named():
    settings = PROBLEM.settings["khig"]
    differences = deviations(PROBLEM, "khig", replace(settings, graft="global"), OPTIONS)
    assert label("khig", differences) == "Kronecker HIG (graft global)"


@pytest.mark.parametrize("name", ["lr", "rcond"])
def test_numbers_that_differ_anywhere_have_files_of_their_own(name):
    def file(value):
        settings = replace(HIG, **{name: value})
        return path(PROBLEM, "hig", deviations(PROBLEM, "hig", settings, OPTIONS), OPTIONS).name

    near = [0.12345671, 0.12345672, 0.123457, 0.12345671 * (1 + 2**-52)]
    assert len({file(value) for value in near}) == len(near)
    assert f"{name}0.12345671_" in file(near[0]) and f"{name}0.123457_" in file(near[2])


def test_changed_problem_and_numbers():
    problem = NonlinearOscillators(oscillators=5, hidden=(8, 8))
    options = replace(OPTIONS, dtype="float64", device="cuda:1")
    differences = deviations(problem, "hig", HIG, options)
    assert differences == ["oscillators 5", "hidden 8-8", "float64", "cuda:1"]
    file = path(problem, "hig", differences, options).name
    assert file == "nonlinear_oscillators_hig_oscillators5_hidden8-8_float64_cuda1_seed4.pickle"


def test_switches_and_texts_of_a_problem():
    assert deviations(Switched(), "hig", HIG, OPTIONS) == []
    problem = Switched(projection_correction=True, fast_steps=False, target="state2")
    differences = deviations(problem, "hig", HIG, OPTIONS)
    assert differences == ["projection correction", "no fast steps", "state2"]
    file = path(problem, "hig", differences, OPTIONS).name
    assert file == "nonlinear_oscillators_hig_projectioncorrection_nofaststeps_state2_seed4.pickle"


def test_where_the_files_of_a_problem_lie_is_no_variant():
    @dataclass(frozen=True)
    class Filed(NonlinearOscillators):
        folder: str = location("data", "where the files are")

    assert deviations(Filed(folder="somewhere"), "hig", HIG, OPTIONS) == []


@pytest.mark.parametrize(
    ("earlier", "part"),
    [("Adam", "afteradam"), ("Gauss–Newton (lr 0.5, trust)", "aftergaussnewtonlr0.5trust")],
)
def test_earlier_run_in_label_and_file_name(earlier, part):
    differences = ["lr 2", f"after {earlier}"]
    assert label("hig", differences) == f"HIG (lr 2, after {earlier})"
    file = path(PROBLEM, "hig", differences, OPTIONS).name
    assert file == f"nonlinear_oscillators_hig_lr2_{part}_seed4.pickle"


def test_a_setting_that_is_automatic_says_which():
    settings = replace(HIG, rcond="auto")
    assert deviations(PROBLEM, "hig", settings, OPTIONS) == ["rcond auto"]
