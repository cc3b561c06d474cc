"""Rows that are not the outputs of the closure: directions of them, and weights."""

import pytest
import torch

import hig
from hig._step.row_map import RowMap, orthonormal_directions
from tests.textbook import flat, relative_error, step_of

MAKE = {
    "hig": lambda p, **o: hig.HIG(p, **{"rcond": 1e-4, **o}),
    "gn": lambda p, **o: hig.GaussNewton(p, **{"rcond": 1e-4, **o}),
    "lm": lambda p, **o: hig.LevenbergMarquardt(p, **{"damping": 1e-2, **o}),
}
EACH = pytest.mark.parametrize("make", MAKE.values(), ids=MAKE)
SAMPLES, OUTPUTS = 6, 5
OF_OUTPUTS = torch.tensor([[0.5, 2.0, 1.0, 3.0, 0.1]], dtype=torch.float64)
WEIGHTS = {
    "samples": torch.tensor([1.0, 2.0, 0.5, 3.0, 1.0, 4.0], dtype=torch.float64),
    "outputs": OF_OUTPUTS,
    "missing": torch.ones(SAMPLES, OUTPUTS, dtype=torch.float64).index_put(
        (torch.tensor([0, 2, 2, 5]), torch.tensor([1, 0, 4, 3])), torch.tensor(0.0).double()
    ),
    "both": OF_OUTPUTS * torch.linspace(0, 2, SAMPLES, dtype=torch.float64).unsqueeze(1),
}
CASES = pytest.mark.parametrize("weights", WEIGHTS.values(), ids=WEIGHTS)


def pieces(controls=4):
    """Two equal networks, their inputs, the matrix of a simulator and its target."""
    torch.manual_seed(0)
    networks = [
        torch.nn.Sequential(torch.nn.Linear(4, 6), torch.nn.Tanh(), torch.nn.Linear(6, controls))
        for _ in range(2)
    ]
    networks[1].load_state_dict(networks[0].state_dict())
    shapes = (SAMPLES, 4), (controls, OUTPUTS), (SAMPLES, OUTPUTS)
    return [n.double() for n in networks], *(torch.randn(s, dtype=torch.float64) for s in shapes)


def both(weights, controls=4):
    """Two equal networks, with a closure that gives weights and one with them written by hand."""
    (given, by_hand), inputs, matrix, target = pieces(controls)
    shaped = weights.unsqueeze(1) if weights.ndim == 1 else weights
    shaped = shaped.expand(SAMPLES, OUTPUTS)

    def with_weights():
        prediction = (given(inputs) @ matrix).sin()
        return (shaped * (prediction - target).square()).sum(1).mean(), prediction, weights

    def written():
        rows = shaped.sqrt() * (by_hand(inputs) @ matrix).sin()
        return (rows - shaped.sqrt() * target).square().sum(1).mean(), rows

    return (given, with_weights), (by_hand, written)


@EACH
@CASES
@pytest.mark.parametrize("controls", [4, 6])
def test_weights_are_those_written_into_the_outputs_by_hand(make, weights, controls):
    (given, with_weights), (by_hand, written) = both(weights, controls)
    options = {"lr": 0.1, "step_rule": "fixed"}
    first = step_of(make(given.parameters(), **options), with_weights)
    second = step_of(make(by_hand.parameters(), **options), written)
    assert relative_error(first, second) < 1e-10


@EACH
@CASES
@pytest.mark.parametrize("rule", ["trust", "line_search"])
@pytest.mark.parametrize("options", [{}, {"momentum": 0.5, "momentum_kind": "projected"}], ids=str)
def test_measured_steps_too(make, weights, rule, options):
    (given, with_weights), (by_hand, written) = both(weights)
    first = make(given.parameters(), step_rule=rule, **options)
    second = make(by_hand.parameters(), step_rule=rule, **options)
    for _ in range(4):
        first.step(with_weights)
        second.step(written)
        assert first.report.step_size == pytest.approx(second.report.step_size, rel=1e-6)
    assert relative_error(flat(given.parameters()), flat(by_hand.parameters())) < 1e-8


def test_a_sketch_of_weighted_outputs():
    (given, with_weights), (by_hand, written) = both(WEIGHTS["both"], 6)
    changes = [
        step_of(hig.HIG(network.parameters(), lr=0.1, rcond=1e-4, sketch=2), closure)
        for network, closure in ((given, with_weights), (by_hand, written))
    ]
    assert relative_error(*changes) < 1e-10


def test_a_missing_output_of_all_samples_is_one_that_is_not_there():
    weights = torch.tensor([[1.0, 1.0, 0.0, 1.0, 0.0]], dtype=torch.float64)
    (given, with_weights), _ = both(weights, 6)
    (_, other), inputs, matrix, target = pieces(6)

    def without():
        prediction = (other(inputs) @ matrix[:, [0, 1, 3]]).sin()
        return (prediction - target[:, [0, 1, 3]]).square().sum(1).mean(), prediction

    first = step_of(hig.HIG(given.parameters(), lr=0.1, rcond=1e-4), with_weights)
    second = step_of(hig.HIG(other.parameters(), lr=0.1, rcond=1e-4), without)
    assert relative_error(first, second) < 1e-10


def test_record_takes_weights():
    (given, with_weights), (by_hand, written) = both(WEIGHTS["both"])
    record, other = hig.record(given.parameters()), hig.record(by_hand.parameters())
    with record:
        loss, prediction, weights = with_weights()
    record.backward(loss, prediction, hig.HalfInverse(rcond=1e-4), weights=weights)
    with other:
        loss, prediction = written()
    other.backward(loss, prediction, hig.HalfInverse(rcond=1e-4))
    found = [flat(p.grad for p in network.parameters()) for network in (given, by_hand)]
    assert relative_error(*found) < 1e-10


@pytest.mark.parametrize("rule", ["fixed", "trust"])
def test_micro_batches_have_weights_of_their_own(rule):
    """The first part needs none."""
    weights = WEIGHTS["missing"].clone()
    weights[0] = 1
    _, (by_hand, written) = both(weights)
    (given, _), inputs, matrix, target = pieces()

    def in_parts():
        for rows in (slice(0, 1), slice(1, 6)):
            part = (given(inputs[rows]) @ matrix).sin()
            loss = (weights[rows] * (part - target[rows]).square()).sum(1).mean()
            yield (loss, part, weights[rows]) if rows.start else (loss, part)

    first, second = (hig.HIG(n.parameters(), 0.1, 1e-4, step_rule=rule) for n in (given, by_hand))
    for _ in range(3):
        first.step(in_parts)
        second.step(written)
    assert relative_error(flat(given.parameters()), flat(by_hand.parameters())) < 1e-9


REFUSED = {
    "negative": (-torch.ones(SAMPLES), ValueError, "not negative, got -1"),
    "not finite": (torch.full((SAMPLES,), torch.nan), ValueError, "finite"),
    "another shape": (torch.ones(4), ValueError, r"shape \(4,\) do not fit"),
    "no tensor": (1.0, TypeError, "weights must be a real tensor"),
    "a loss of what is missing": (torch.zeros(SAMPLES), ValueError, "outputs whose weight is 0"),
}


@pytest.mark.parametrize(("weights", "error", "text"), REFUSED.values(), ids=REFUSED)
def test_what_weights_cannot_be(weights, error, text):
    (network, closure), _ = both(WEIGHTS["samples"])
    before = flat(network.parameters()).clone()

    def weighted():
        loss, prediction, _ = closure()
        return loss, prediction, weights

    with pytest.raises(error, match=text):
        hig.HIG(network.parameters()).step(weighted)
    assert torch.equal(flat(network.parameters()), before)


def test_other_steps_refuse_weights():
    (network, closure), _ = both(WEIGHTS["samples"])
    with pytest.raises(ValueError, match="must return"):
        hig.KroneckerHIG(network.parameters()).step(closure)
    with pytest.raises(ValueError, match="pair"):
        hig.MultiHIG(network.parameters()).step(closure)


def test_lift_undoes_weights_and_leaves_out_what_has_none():
    prediction = torch.ones(2, 3)
    roots = torch.tensor([[1.0, 2.0, 0.0], [4.0, 0.5, 1.0]])
    lifted = RowMap(prediction, prediction, roots=roots).lift(torch.ones(6, dtype=torch.float64))
    expected = torch.tensor([1.0, 0.5, 0.0, 0.25, 2.0, 1.0], dtype=torch.float64)
    torch.testing.assert_close(lifted, expected)


def normal(*shape):
    return torch.randn(*shape, dtype=torch.float64)


@pytest.mark.parametrize("count", [1, 2, 5])
@pytest.mark.parametrize("scale", [1.0, 1e-200, 1e200])
def test_directions_are_orthonormal_and_the_first_is_along_the_gradient(count, scale):
    torch.manual_seed(0)
    gradient = scale * normal(4, 5)
    directions = orthonormal_directions(gradient, normal(4, 5, count))
    assert directions.shape == (4, count, 5)
    identity = torch.eye(count, dtype=torch.float64).expand(4, count, count)
    torch.testing.assert_close(directions @ directions.mT, identity, rtol=0, atol=1e-13)
    along = (directions @ (gradient / scale).unsqueeze(-1)).squeeze(-1)
    torch.testing.assert_close(along[:, 0], (gradient / scale).norm(dim=1))
    torch.testing.assert_close(along[:, 1:], torch.zeros_like(along[:, 1:]), rtol=0, atol=1e-13)


def test_a_sample_without_gradient_has_random_directions():
    gradient = normal(3, 5)
    gradient[1] = 0
    random = normal(3, 5, 2)
    directions = orthonormal_directions(gradient, random)
    torch.testing.assert_close(directions[1, 0], random[1, :, 0] / random[1, :, 0].norm())
