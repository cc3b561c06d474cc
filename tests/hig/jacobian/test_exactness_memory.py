"""Inexact layers are tried again seldom, in other graphs at once."""

import copy
import pickle
from itertools import pairwise

import torch
from torch import nn

import hig
from hig._jacobian.capture import Capture, ForwardPass
from hig._jacobian.engine import build_jacobian
from hig._jacobian.exactness import FIRST, LAST, MOST, UNITS, ExactnessMemory
from hig._torch.batched_vjp import BatchedVJP
from tests.textbook import relative_error, textbook_jacobian


def tries(memory, builds, key=("layer",), kind="graph"):
    """The builds in which a layer that is never exact is tried."""
    found = []
    for _ in range(builds):
        memory.builds += 1
        if not memory.skips(key, kind):
            found.append(memory.builds)
            memory.record_failure(key, kind)
    return found


def test_tries_are_ever_further_apart():
    found = tries(ExactnessMemory(), 20000)
    distances = [b - a for a, b in pairwise(found)]
    assert distances[:3] == [FIRST, 2 * FIRST, 4 * FIRST]
    assert max(distances) == distances[-1] == LAST


def test_another_layer_and_another_kind_of_graph_are_tried_at_once():
    memory = ExactnessMemory()
    tries(memory, 1)
    assert memory.skips(("layer",), "graph")
    assert not memory.skips(("another",), "graph")
    assert not memory.skips(("layer",), "another")


def test_what_is_exact_again_is_forgotten():
    memory = ExactnessMemory()
    tries(memory, 30)
    memory.record_success(("layer",), 1.0, lambda: "graph")
    assert not memory.failures
    assert tries(memory, 2) == [31]


def test_rounding_beyond_the_usual_is_allowed_for_a_time():
    memory, key = ExactnessMemory(builds=1), ("layer",)
    memory.record_success(key, UNITS / 2, lambda: None)
    assert memory.allowed(key) == UNITS
    memory.record_success(key, 10 * UNITS, lambda: None)
    assert memory.allowed(key) == 20 * UNITS
    memory.builds += FIRST - 1
    assert memory.allowed(key) == 20 * UNITS
    memory.builds += 1
    assert memory.allowed(key) == UNITS
    memory.record_success(key, 5 * UNITS, lambda: None)  # the larger one stays, for twice as long
    memory.builds += 2 * FIRST - 1
    assert memory.allowed(key) == 20 * UNITS


def test_graphs_that_change_in_every_step_do_not_fill_the_memory():
    memory = ExactnessMemory()
    for kind in range(MOST + 10):
        memory.record_failure(("layer",), kind)
        memory.record_success((kind,), 2 * UNITS, lambda: None)
    assert len(memory.failures) == len(memory.rounding) == MOST
    assert memory.skips(("layer",), MOST + 9)


def test_copies_remember():
    memory = ExactnessMemory()
    tries(memory, 3)
    for twin in (copy.deepcopy(memory), pickle.loads(pickle.dumps(memory))):
        assert twin == memory
        assert twin.skips(("layer",), "graph")


def test_what_has_become_exact_is_taken_at_once():
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(5, 6), nn.BatchNorm1d(6), nn.Tanh(), nn.Linear(6, 2)).double()
    x = torch.randn(8, 5, dtype=torch.float64)
    optimizer = hig.HIG([network[0].weight, *network[3].parameters()], lr=1e-3, rcond=1e-2)

    def closure():
        prediction = network(x)
        return prediction.square().sum(1).mean(), prediction

    for mode, engine in [(True, "layerwise+rows"), (False, "layerwise"), (True, "layerwise+rows")]:
        network.train(mode)
        for _ in range(3):
            optimizer.step(closure)
            assert optimizer.report.engine == engine


def test_layers_behind_the_coupling_stay_layers_while_others_are_left_out():
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(5, 6), nn.BatchNorm1d(6), nn.Tanh(), nn.Linear(6, 2)).double()
    names, parameters = zip(*network.named_parameters(), strict=True)
    backward, memory = BatchedVJP(), ExactnessMemory()
    x = torch.randn(8, 5, dtype=torch.float64)
    for _ in range(4):
        with Capture(parameters) as capture:
            prediction = network(x)
        forward = ForwardPass(capture.uses, prediction, parameters, names)
        found = build_jacobian(forward, "auto", backward, memory)
        routes = dict(zip(names, found.routes, strict=True))
        assert routes["3.weight"] == routes["3.bias"] == "layerwise"
        assert routes["0.weight"] == routes["0.bias"] == "rows"
        assert not found.layers_exact
        expected = textbook_jacobian(prediction, [parameters[index] for index in found.order])
        assert relative_error(found.jacobian.dense(), expected) < 1e-12
