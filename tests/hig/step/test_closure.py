"""Closures written for other optimisers, and what is said of them."""

import threading

import pytest
import torch
from torch import nn

import hig
from hig._step.closure import call
from tests.hig.test_inputs import recorded


class OneOfSeveral(hig.MultiHIG):
    def step(self, closure):
        return super().step(lambda: [closure()])


STEPS = {
    "hig": hig.HIG,
    "rows": lambda p: hig.HIG(p, engine="rows"),
    "chunk": lambda p: hig.HIG(p, engine="rows", chunk=1),
    "lanczos": lambda p: hig.HIG(p, method="lanczos", engine="rows"),
    "trust": lambda p: hig.GaussNewton(p, step_rule="trust"),
    "levenberg": hig.LevenbergMarquardt,
    "kronecker": hig.KroneckerHIG,
    "multi": OneOfSeveral,
}
LOSSES = {  # the graphs of the last two hold nothing, and can be gone through twice
    "squares": lambda prediction: prediction.square().mean(),
    "mean": lambda prediction: prediction.mean(),
    "sum": lambda prediction: prediction.sum(),
}


def network_and_inputs(layers=2):
    torch.manual_seed(0)
    parts = [nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)] if layers == 2 else [nn.Linear(3, 2)]
    return nn.Sequential(*parts), torch.randn(6, 3)


def unchanged_by(network, function, match):
    before = [p.detach().clone() for p in network.parameters()]
    with pytest.raises(ValueError, match=match):
        function()
    assert all(map(torch.equal, network.parameters(), before))


@pytest.mark.parametrize("loss_of", LOSSES.values(), ids=LOSSES)
@pytest.mark.parametrize("make", [*STEPS.values(), recorded], ids=[*STEPS, "record"])
def test_backward_in_the_closure(make, loss_of):
    network, x = network_and_inputs()
    optimizer = make(network.parameters())

    def closure():
        optimizer.zero_grad()
        prediction = network(x)
        loss = loss_of(prediction)
        loss.backward()
        return loss, prediction

    unchanged_by(network, lambda: optimizer.step(closure), r"leave out backward\(\)")


@pytest.mark.parametrize("make", STEPS.values(), ids=STEPS)
def test_zero_grad_and_a_kept_graph_do_no_harm(make):
    steps = []
    for habit in (False, True):
        network, x = network_and_inputs()
        optimizer = make(network.parameters())

        def closure(network=network, optimizer=optimizer, habit=habit, x=x):
            prediction = network(x)
            loss = prediction.square().mean()
            if habit:
                optimizer.zero_grad()
                loss.backward(retain_graph=True)
            return loss, prediction

        for _ in range(2):
            optimizer.step(closure)
        steps.append([p.detach().clone() for p in network.parameters()])
    assert all(map(torch.equal, *steps))


@pytest.mark.parametrize("layers", [1, 2])
@pytest.mark.parametrize("make", STEPS.values(), ids=STEPS)
def test_a_prediction_from_outside(make, layers):
    network, x = network_and_inputs(layers)
    optimizer, prediction = make(network.parameters()), network(x)
    outcome = prediction.square().mean(), prediction
    closures = [lambda: (prediction.square().mean(), prediction), lambda: outcome]
    for closure in closures:
        unchanged_by(
            network, lambda closure=closure: optimizer.step(closure), "before it was called"
        )


def test_a_prediction_that_is_kept_from_step_to_step():
    network, x = network_and_inputs(1)
    optimizer, kept = hig.HIG(network.parameters()), []

    def closure():
        if not kept:
            kept.append(network(x))
        return kept[0].square().mean(), kept[0]

    optimizer.step(closure)
    unchanged_by(network, lambda: optimizer.step(closure), "before it was called")


def test_a_prediction_of_another_thread_is_new():
    """Each thread numbers the nodes of its graphs by itself."""
    network, x = network_and_inputs()
    x = x.requires_grad_()
    for _ in range(1000):  # ahead of the other thread
        x * 1

    def closure():
        found = []
        thread = threading.Thread(target=lambda: found.append(network(x)))
        thread.start()
        thread.join()
        return found[0].square().mean(), found[0]

    before = [p.detach().clone() for p in network.parameters()]
    hig.HIG(network.parameters()).step(closure)
    assert not any(map(torch.equal, network.parameters(), before))


def test_a_parameter_as_prediction():
    parameter = nn.Parameter(torch.ones(4, 1))
    assert call(lambda: (parameter.sum(), parameter))[1] is parameter


@pytest.mark.parametrize("make", [hig.HIG, hig.LevenbergMarquardt, hig.KroneckerHIG])
@pytest.mark.parametrize("outcome", ["loss", "nothing", "number"])
def test_a_loss_alone(make, outcome):
    network, x = network_and_inputs()

    def closure():
        loss = network(x).square().mean()
        return {"loss": loss, "nothing": None, "number": float(loss.detach())}[outcome]

    optimizer = make(network.parameters())
    unchanged_by(
        network,
        lambda: optimizer.step(closure),
        r"must return \(loss, prediction\), got .*Lightning.*hig.record",
    )


@pytest.mark.parametrize("make", [hig.HIG, hig.LevenbergMarquardt, hig.MultiHIG])
@pytest.mark.parametrize("arguments", [(), (None,)])
def test_no_closure(make, arguments):
    network, _ = network_and_inputs()
    with pytest.raises(TypeError, match=r"closure.*hig.record"):
        make(network.parameters()).step(*arguments)
