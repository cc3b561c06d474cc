"""Methods with the step rule and the cut-off under test."""

from dataclasses import replace

import pytest
import torch

import hig
from experiments._methods import METHODS
from experiments._robustness import variants
from experiments._robustness.variants import RULES, TESTED, Variant, cutoff_text
from problems import CartPole, ConditioningToy, NonlinearOscillators
from problems.pinn import Burgers


@pytest.mark.parametrize(
    "text",
    [
        *("hig:trust", "gn:fixed", "lm:default", "hig:published"),
        *("hig:trust:1e-6", "gn:default:auto", "gn:trust:1e-4:3", "hig:trust::0.5"),
    ],
)
def test_a_variant_is_written_as_it_was_read(text):
    assert str(Variant.parse(text)) == text


def test_the_rule_is_trust_if_none_is_given():
    assert Variant.parse("gn") == Variant("gn", "trust") == Variant("gn")
    assert TESTED == ("hig", "gn", "lm") and {"trust", "default", "published"} < set(RULES)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("adam", "method must be one of hig, gn, lm, got 'adam'; give such as hig or"),
        ("", "method must be one of hig, gn, lm, got ''"),
        ("hig:thrust", "rule must be one of fixed, .*, got 'thrust'; give such as hig:trust"),
        ("hig::1e-6", "rule must be one of .*, got ''"),
        ("hig:trust:1", r"cut-off must be a number in \[0, 1\) or auto, got '1'"),
        ("hig:trust:small", "got 'small'; give such as 1e-6"),
        ("hig:trust:nan", "got 'nan'"),
        ("hig:trust:1e-6:0", "learning rate must be a positive number, got '0'; give such as 0.5"),
        ("hig:trust:1e-6:fast", "learning rate must be .* got 'fast'"),
        ("lm:fixed:1e-3", "lm has no cut-off with the rule fixed, .*; give such as lm:trust:1e-3"),
        ("lm:trust:auto", "lm has no automatic cut-off, got 'auto'; give such as lm:trust or"),
        ("lm:default:auto", "lm has no automatic cut-off"),
    ],
)
def test_errors(text, message):
    with pytest.raises(ValueError, match=message):
        Variant.parse(text)


@pytest.fixture
def built(monkeypatch):
    """Make the optimiser of a variant; returns the arguments that its class was given."""

    def arguments_of(text, problem):
        found = []

        def build(parameters, **options):
            found.append(options)

        methods = {name: replace(method, build=build) for name, method in METHODS.items()}
        monkeypatch.setattr(variants, "METHODS", methods)
        Variant.parse(text).optimizer(problem, [torch.nn.Parameter(torch.ones(2))])
        (options,) = found
        return options

    return arguments_of


def test_rules_that_measure_take_the_cutoff_of_the_problem_alone(built):
    assert built("hig:trust", CartPole()) == {"step_rule": "trust", "rcond": 1e-3}
    assert built("gn:line_search:auto", CartPole()) == {"step_rule": "line_search", "rcond": "auto"}
    assert built("lm:trust", CartPole()) == {"step_rule": "trust"}  # lr and damping of its own
    assert built("lm:trust:1e-3", CartPole()) == {"step_rule": "trust", "rcond": 1e-3}
    physics = {"step_rule": "trust", "rcond": 1e-12, "method": "gram"}
    assert built("hig:trust", Burgers()) == physics
    assert built("lm:trust::0.5", CartPole()) == {"step_rule": "trust", "lr": 0.5}


def test_published_and_fixed_settings_are_those_of_the_problem(built):
    oscillators = built("lm:published", NonlinearOscillators())
    assert (oscillators["lr"], oscillators["damping"]) == (64.0, 1.0)
    assert oscillators["step_rule"] == "fixed"
    assert built("lm:published", CartPole())["step_rule"] == "trust"
    cart = built("lm:fixed", CartPole())
    assert (cart["step_rule"], cart["lr"]) == ("fixed", 8.0)
    own = built("gn:published:1e-4:0.2", NonlinearOscillators())
    assert (own["rcond"], own["lr"]) == (1e-4, 0.2)


@pytest.mark.parametrize("method", TESTED)
def test_default_is_the_optimiser_without_arguments(built, method):
    assert built(f"{method}:default", ConditioningToy()) == {}
    assert built(f"{method}:default:1e-3", ConditioningToy()) == {"rcond": 1e-3}


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("method", TESTED)
def test_every_variant_makes_its_optimiser(method, rule):
    problem = ConditioningToy()
    found = Variant(method, rule).optimizer(problem, list(problem.network().parameters()))
    classes = {"hig": hig.HIG, "gn": hig.GaussNewton, "lm": hig.LevenbergMarquardt}
    assert type(found) is classes[method]


def test_cutoffs_are_written_without_zeros():
    assert [cutoff_text(value) for value in (1e-6, 2.5e-4, 0.0, 0.1, 1e-12, "auto")] == [
        "1e-6", "2.5e-4", "0", "0.1", "1e-12", "auto",
    ]  # fmt: skip
