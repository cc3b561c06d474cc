"""The cases of a comparison compute the same, in this package and in others."""

import sys

import pytest
import torch

from experiments._measure.peers import DIRECTION, GRAM, PACKAGES, STEP, PeerCases, require_peers
from experiments._methods.regression import Regression
from problems import NonlinearOscillators, QuantumDipole
from tests.textbook import flat, relative_error, textbook_damped, textbook_jacobian

REGRESSION = Regression(widths=(3, 6, 2), train_size=8)
TINY = NonlinearOscillators(time_steps=6, dt=0.5, hidden=(5,), train_size=8, test_size=4)
QUANTUM = QuantumDipole(time_steps=5, grid_points=6, hidden=(4,), train_size=8, test_size=2)
PROBLEMS = [REGRESSION, TINY, QUANTUM]


def cases_of(problem):
    return PeerCases(problem, batch_size=8, dtype=torch.float64)


def error(problem, quantity, compute):
    """Of the second call, which must start from the same weights as the first."""
    compute()
    return relative_error(compute(), cases_of(problem).reference()[quantity])


@pytest.mark.parametrize("problem", PROBLEMS)
def test_the_reference_is_that_of_one_backward_pass_per_output(problem):
    cases = cases_of(problem)
    network = cases._network()
    prediction = problem.predict(network, cases.batch)
    jacobian = textbook_jacobian(prediction, network.parameters())
    residual = (prediction - cases.batch["target"]).detach().flatten()
    direction = textbook_damped(jacobian, residual, cases.damping)
    found = cases.reference()
    assert relative_error(found[GRAM], jacobian @ jacobian.T) < 1e-9
    assert relative_error(found[STEP], direction) < 1e-9
    assert relative_error(found[DIRECTION], direction) < 1e-9


@pytest.mark.parametrize("problem", PROBLEMS)
def test_our_own_cases_compute_the_reference(problem):
    cases = cases_of(problem)
    assert error(problem, STEP, cases.step(problem)) < 1e-9
    assert error(problem, DIRECTION, cases.direction(problem)) < 1e-9
    assert error(problem, GRAM, cases.gram(problem)) < 1e-9


@pytest.mark.parametrize("solver", ["qr", "cholesky"])
@pytest.mark.parametrize("problem", PROBLEMS)
def test_torch_levenberg_marquardt_takes_the_same_step(problem, solver):
    pytest.importorskip("torch_levenberg_marquardt")
    assert error(problem, STEP, cases_of(problem).torch_lm(solver)) < 1e-9


@pytest.mark.parametrize("problem", PROBLEMS)
def test_curvlinops_finds_the_same_direction(problem):
    pytest.importorskip("curvlinops")
    assert error(problem, DIRECTION, cases_of(problem).curvlinops(tolerance=1e-9)) < 1e-7
    assert error(problem, DIRECTION, cases_of(problem).curvlinops()) < 1e-2


@pytest.mark.parametrize("problem", PROBLEMS)
def test_torchjd_finds_the_same_gram_matrix(problem):
    pytest.importorskip("torchjd.autogram")
    assert error(problem, GRAM, cases_of(problem).torchjd()) < 1e-9


def test_the_first_case_of_each_quantity_is_ours_and_weights_are_equal():
    cases = cases_of(TINY)
    first = {}
    for case in cases.cases():
        first.setdefault(case.quantity, case.case)
    assert list(first) == [STEP, DIRECTION, GRAM]
    assert all(name.startswith("hig") for name in first.values())
    assert torch.equal(flat(cases._network().parameters()), flat(cases._network().parameters()))


def test_a_plain_loop_is_compared_where_there_is_one():
    def plain(problem):
        return [case.quantity for case in cases_of(problem).cases() if "plain" in case.case]

    assert plain(TINY) == [STEP, DIRECTION, GRAM]
    assert plain(REGRESSION) == []


def test_a_batch_larger_than_the_data_is_refused():
    with pytest.raises(ValueError, match="at most 8, the number of training samples, got 9"):
        PeerCases(TINY, batch_size=9)


@pytest.mark.parametrize(("module", "package"), PACKAGES.items())
def test_a_missing_package_is_named(module, package, monkeypatch):
    for other in PACKAGES:
        monkeypatch.setitem(sys.modules, other, sys)  # as if it were there
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ImportError, match=rf"needs the package {package}.*pip install 'hig\[peers"):
        require_peers()
