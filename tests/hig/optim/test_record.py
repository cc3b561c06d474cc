"""The direction in .grad, for any other optimiser."""

import pytest
import torch
from torch import nn

import hig
from tests.hig.networks import ALL, build, least_squares
from tests.textbook import flat, relative_error, step_of


def recorded(network, closure, **options):
    with hig.record(network.parameters()) as record:
        loss, prediction = closure()
    record.backward(loss, prediction, **options)
    return record


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("filter", [hig.HalfInverse(rcond=1e-4), hig.Damped(damping=0.1)])
def test_sgd_on_the_recorded_direction_is_the_step(name, filter):
    network, inputs = build(name)
    closure = least_squares(network, inputs)
    recorded(network, closure, filter=filter)
    direction = flat(p.grad for p in network.parameters())
    optimizer = hig.HIG(network.parameters(), lr=1.0, step_rule="fixed")
    optimizer.filter = filter
    assert relative_error(step_of(optimizer, closure), -direction) < 1e-12


def test_momentum_clipping_and_accumulation_take_it_from_there():
    network, inputs = build("mlp", torch.float32)
    closure = least_squares(network, inputs)
    filter = hig.HalfInverse(rcond=1e-6)
    recorded(network, closure, filter=filter)
    once = flat(p.grad for p in network.parameters())
    recorded(network, closure, filter=filter)
    assert torch.equal(flat(p.grad for p in network.parameters()), 2 * once)
    assert all(p.grad.dtype == p.dtype for p in network.parameters())
    nn.utils.clip_grad_norm_(network.parameters(), 1e-3)
    before = flat(network.parameters()).clone()
    torch.optim.SGD(network.parameters(), lr=1.0, momentum=0.9).step()
    assert float((flat(network.parameters()) - before).norm()) == pytest.approx(1e-3, rel=1e-3)


def test_the_report_and_the_recorder_can_be_used_again():
    network, inputs = build("mlp")
    closure = least_squares(network, inputs)
    record = hig.record(network.parameters())
    assert record.report is None
    for _ in range(2):
        network.zero_grad()
        with record:
            loss, prediction = closure()
        record.backward(loss, prediction, filter=hig.HalfInverse())
    assert record.report.engine == "layerwise"
    assert record.report.step_size is None
    assert "ms:" in str(record.report)


def test_nothing_is_written_on_an_error():
    network, inputs = build("mlp")
    closure = least_squares(network, inputs * float("nan"))
    with pytest.raises(hig.NonFiniteError):
        recorded(network, closure, filter=hig.HalfInverse())
    assert all(p.grad is None for p in network.parameters())


def test_frozen_parameters_get_no_gradient():
    network, inputs = build("mlp")
    network[0].weight.requires_grad_(False)
    recorded(network, least_squares(network, inputs), filter=hig.HalfInverse())
    assert network[0].weight.grad is None
    assert network[0].bias.grad is not None


def test_a_parameter_given_twice_counts_once():
    network, inputs = build("mlp")
    closure = least_squares(network, inputs)
    recorded(network, closure, filter=hig.HalfInverse())
    expected = flat(p.grad for p in network.parameters())
    network.zero_grad()
    parameters = list(network.parameters())
    with hig.record(parameters + parameters[:1]) as record:
        loss, prediction = closure()
    record.backward(loss, prediction, filter=hig.HalfInverse())
    assert torch.equal(flat(p.grad for p in network.parameters()), expected)


def test_a_sketch_draws_its_seed():
    network, inputs = build("mlp")
    closure, options = least_squares(network, inputs), {"filter": hig.HalfInverse(rcond=1e-4)}
    outputs = closure()[1].shape[1]
    found = []
    for seed, sketch in ((0, 1), (0, 1), (1, 1), (0, outputs), (0, None)):
        network.zero_grad()
        torch.manual_seed(seed)
        report = recorded(network, closure, sketch=sketch, **options).report
        found.append(flat(p.grad for p in network.parameters()).clone())
        assert report.rows == len(inputs) * (sketch or outputs)
    # One direction is along the gradient, whatever is drawn.
    assert torch.equal(found[0], found[1]) and relative_error(found[0], found[2]) < 1e-12
    assert torch.equal(found[3], found[4]) and not torch.equal(found[0], found[4])
