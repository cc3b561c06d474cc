"""Jacobian of a batch in parts against that of the whole."""

import pytest
import torch

from hig._jacobian.blocks import DenseBlock, JointJacobian
from hig._jacobian.capture import Capture, ForwardPass
from hig._jacobian.engine import EngineResult, build_jacobian
from hig._jacobian.exactness import ExactnessMemory
from hig._jacobian.stacked import stacked
from hig._torch.batched_vjp import BatchedVJP
from tests.hig import networks
from tests.textbook import relative_error, textbook_jacobian

NAMES = sorted(set(networks.ALL) - {"batch norm", "time major", "embedding"})


def result_of(network, inputs, engine="auto"):
    parameters = list(network.parameters())
    with Capture(parameters) as capture:
        prediction = network(inputs)
    names = [name for name, _ in network.named_parameters()]
    forward = ForwardPass(capture.uses, prediction, parameters, names)
    return build_jacobian(forward, engine, BatchedVJP(), ExactnessMemory())


def check(found, expected):
    jacobian, (n, columns) = found.jacobian, expected.shape
    assert jacobian.shape == (n, columns)
    weights, direction = torch.randn(n).double(), torch.randn(columns).double()
    with torch.no_grad():
        assert relative_error(jacobian.dense(), expected) < 1e-12
        assert relative_error(jacobian.gram(), expected @ expected.T) < 1e-12
        assert relative_error(jacobian.normal(), expected.T @ expected) < 1e-12
        assert relative_error(jacobian.vjp(weights), expected.T @ weights) < 1e-12
        assert relative_error(jacobian.jvp(direction), expected @ direction) < 1e-12
    each = n // jacobian.samples
    some = slice(1, jacobian.samples - 1)
    rows = expected[some.start * each : some.stop * each]
    assert relative_error(jacobian.rows(some), rows) < 1e-12


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("engines", [("auto",) * 3, ("auto", "rows", "auto")], ids=str)
def test_all_rows_are_those_of_the_whole_batch(name, engines):
    network, inputs = networks.build(name)
    inputs = torch.randn(7, *inputs.shape[1:], dtype=torch.float64)
    parameters = list(network.parameters())
    parts = [
        result_of(network, part, engine)
        for part, engine in zip(inputs.split([3, 1, 3]), engines, strict=True)
    ]
    found = stacked(parts, [parameter.numel() for parameter in parameters])
    prediction = network(inputs)
    check(found, textbook_jacobian(prediction, [parameters[index] for index in found.order]))


def test_columns_that_one_part_has_formed():
    """Its factors are larger than its columns, those of the other part are not."""
    network, inputs = networks.build("mlp")
    first, second = result_of(network, inputs[:2]), result_of(network, inputs[2:])
    formed = [
        DenseBlock(block.rows(slice(0, 2)).double(), first.jacobian.outputs)
        for block in first.jacobian.blocks
    ]
    jacobian = JointJacobian(formed, 2, first.jacobian.outputs, first.jacobian.like)
    parameters = list(network.parameters())
    found = stacked(
        [EngineResult(jacobian, first.order, first.routes), second],
        [parameter.numel() for parameter in parameters],
    )
    check(found, textbook_jacobian(network(inputs), [parameters[index] for index in found.order]))


def test_notes_and_routes_are_those_of_all_parts():
    network, inputs = networks.build("mlp")
    parts = [result_of(network, inputs[:2]), result_of(network, inputs[2:], "rows")]
    parts[0].notes.append("one")
    parts[1].notes.extend(["one", "two"])
    found = stacked(parts, [parameter.numel() for parameter in network.parameters()])
    assert found.notes == ["one", "two"]
    assert set(found.routes) == {"rows"}
