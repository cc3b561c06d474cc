"""The same numbers on a GPU, with the Jacobian work staying there."""

import copy

import pytest
import torch

import hig
from problems import NonlinearOscillators, QuantumDipole
from tests.hig.networks import ALL, build, least_squares
from tests.textbook import flat, relative_error

pytestmark = pytest.mark.cuda


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("engine", ["auto", "rows"])
@pytest.mark.parametrize("step_rule", ["fixed", "trust", "line_search"])
def test_steps_equal_those_on_the_cpu(name, engine, step_rule):
    results = []
    for device in ("cpu", "cuda"):
        network, inputs = build(name)
        network, inputs = network.to(device), inputs.to(device)
        optimizer = hig.HIG(
            network.parameters(), lr=0.3, rcond=1e-4, engine=engine, step_rule=step_rule
        )
        for _ in range(3):
            optimizer.step(least_squares(network, inputs))
        assert optimizer.report.singular_values.device.type == device
        results.append(flat(network.parameters()).cpu())
    assert relative_error(*results) < 1e-6


@pytest.mark.parametrize("engine", ["auto", "rows"])
@pytest.mark.parametrize("name", ["mlp", "conv2d", "feedback", "layer norm"])
def test_products_alone_give_the_steps_of_the_cpu(name, engine):
    results = []
    for device in ("cpu", "cuda"):
        network, inputs = build(name)
        network, inputs = network.to(device), inputs.to(device)
        optimizer = hig.HIG(
            network.parameters(),
            lr=0.3,
            rcond=1e-4,
            engine=engine,
            method=hig.Lanczos(1e-10),
            step_rule="fixed",
        )
        optimizer.step(least_squares(network, inputs))
        assert optimizer.report.singular_values.device.type == device
        results.append(flat(network.parameters()).cpu())
    assert relative_error(*results) < 1e-6


@pytest.mark.parametrize("name", ALL)
def test_kronecker_steps_equal_those_on_the_cpu(name):
    results = []
    for device in ("cpu", "cuda"):
        network, inputs = build(name)
        network, inputs = network.to(device), inputs.to(device)
        optimizer = hig.KroneckerHIG(network.parameters(), lr=0.01)
        for _ in range(3):
            optimizer.step(least_squares(network, inputs))
        results.append(flat(network.parameters()).cpu())
    assert relative_error(*results) < 1e-6


@pytest.mark.parametrize("problem", [NonlinearOscillators(), QuantumDipole()])
@pytest.mark.parametrize("step_rule", ["fixed", "trust"])
def test_recorded_steps_equal_those_that_are_not(problem, step_rule):
    torch.manual_seed(0)
    start = problem.network().double().cuda()
    train, _ = problem.data(torch.Generator().manual_seed(0))
    results = []
    for graph in (False, True):
        network = copy.deepcopy(start)
        batch = {key: value[:16].cuda() for key, value in train.items()}
        optimizer = hig.HIG(network.parameters(), rcond=1e-4, step_rule=step_rule, cuda_graph=graph)

        def closure(network=network, batch=batch):
            prediction = problem.predict(network, batch)
            return problem.loss(prediction, batch), prediction

        for first in range(0, 128, 16):
            for key, value in batch.items():
                value.copy_(train[key][first : first + 16])
            optimizer.step(closure)
        assert ("replay" in optimizer.report.seconds) == graph
        results.append(flat(network.parameters()).cpu())
    assert relative_error(*results) < 1e-8


@pytest.mark.parametrize("kind", [hig.GaussNewton, hig.LevenbergMarquardt])
def test_siblings(kind):
    network, inputs = build("mlp", torch.float32)
    network, inputs = network.cuda(), inputs.cuda()
    optimizer = kind(network.parameters(), lr=0.5)
    losses = [optimizer.step(least_squares(network, inputs)).item() for _ in range(20)]
    assert losses[-1] < 0.1 * losses[0]


def test_half_inverse():
    jacobian, gradient = torch.randn(20, 30), torch.randn(20)
    expected = hig.half_inverse(jacobian, gradient)
    found = hig.half_inverse(jacobian.cuda(), gradient.cuda())
    assert found.is_cuda
    assert relative_error(found.cpu(), expected) < 1e-4


@pytest.mark.parametrize("problem", [NonlinearOscillators(), QuantumDipole()])
def test_problems_and_their_rollouts(problem):
    results = []
    for device in ("cpu", "cuda"):
        torch.manual_seed(0)
        network = problem.network().double().to(device)
        train, _ = problem.data(torch.Generator().manual_seed(0))
        batch = {key: value[:16].to(device) for key, value in train.items()}

        def closure(network=network, batch=batch):
            prediction = problem.predict(network, batch)
            return problem.loss(prediction, batch), prediction

        hig.HIG(network.parameters(), rcond=1e-4, step_rule="fixed").step(closure)
        results.append(flat(network.parameters()).cpu())
    assert relative_error(*results) < 1e-8


@pytest.mark.parametrize("recorded", [False, True])
@pytest.mark.parametrize("make", [hig.HIG, hig.LevenbergMarquardt])
def test_trials_build_no_graph_and_repeat(make, recorded):
    network, inputs = build("mlp")
    network, inputs = network.cuda(), inputs.cuda()
    optimizer = make(network.parameters(), step_rule="trust", cuda_graph=recorded)
    for _ in range(4):
        optimizer.step(least_squares(network, inputs))
        assert optimizer._watch.graph == 0
        assert not any("same point differ" in note for note in optimizer.report.notes)
