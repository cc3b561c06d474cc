"""Backward passes against differences along a line: agreement, doubt, and the search of steps."""

import torch

from hig.testing._line import Line, estimate, search_steps
from hig.testing._simulator import Simulator
from tests.hig.testing.simulators import INPUTS, Scaled, smooth

FACTORS = torch.linspace(0.5, 2, 4, dtype=torch.float64).unsqueeze(1)
EPS = torch.finfo(torch.float64).eps


def line_of(simulate, inputs=(INPUTS, FACTORS), position=0):
    simulator = Simulator.of(simulate, inputs)
    generator = torch.Generator().manual_seed(0)
    direction = torch.randn(inputs[position].shape, generator=generator, dtype=torch.float64)
    middle = simulator(*inputs).double().flatten()
    return Line(simulator, list(inputs), position, direction, middle, EPS)


def product(x, y):
    return smooth(x) * y


def test_one_input_moves_along_the_line():
    line = line_of(product)
    x, y = line.at(0.5)
    assert torch.equal(x, INPUTS + 0.5 * line.direction) and y is FACTORS
    assert torch.equal(line.values(0.5), product(x, y).flatten())
    assert line.values(0) is line.middle


def test_derivatives_along_the_line():
    line = line_of(product, position=1)
    cotangent = torch.linspace(-1, 1, line.middle.numel(), dtype=torch.float64)
    expected = (smooth(INPUTS) * line.direction).flatten() @ cotangent
    for t in (0.0, 0.7):
        torch.testing.assert_close(line.derivative(t, cotangent), float(expected))


def test_points_that_the_simulator_refuses_are_not_numbers():
    def simulate(x, y):
        if float((x - INPUTS).detach().abs().max()) > 0.1:
            raise ValueError("too far away")
        return product(x, y)

    line = line_of(simulate)
    assert line.values(1.0).isnan().all() and line.values(1e-3).isfinite().all()
    refused = estimate(line, 1.0, 0)
    assert not refused.agrees and refused.uncertainty == float("inf")
    assert search_steps(line, 0)[-1].agrees


def test_right_and_wrong_derivatives():
    for factor, error in ((1.0, 0.0), (1.01, 0.01), (-1.0, 2.0)):
        scale = torch.tensor(factor, dtype=torch.float64)
        line = line_of(lambda x, y, s=scale: product(Scaled.apply(x, s), y))
        found = estimate(line, 1e-3, seed=0)
        assert found.agrees is (factor == 1)
        # The first seed gives all errors the same sign: they add up to the factor.
        assert abs(found.claimed / found.expected - factor) < 1e-9
        assert found.error >= 0.99 * error
        assert found.uncertainty < 1e-9 and found.noise < 1e-13


def test_weights_make_outputs_of_any_unit_count_alike():
    units = torch.tensor([1e8, 1.0, 1e-8, 1e3], dtype=torch.float64)
    found = estimate(line_of(lambda x, y: product(x, y) * units), 1e-3, seed=1)
    shares = (found.cotangent * found.slopes).abs().view(4, 4).square().mean(0).sqrt()
    assert float(shares.max() / shares.min()) < 10


def test_the_search_ends_where_it_is_decided():
    assert len(search_steps(line_of(product), 0)) <= 2
    wrong = torch.tensor(0.5, dtype=torch.float64)
    assert len(search_steps(line_of(lambda x, y: product(Scaled.apply(x, wrong), y)), 0)) == 2
    # Large constants hide small changes in rounding: larger steps show them.
    estimates = search_steps(line_of(lambda x, y: 1e9 + 1e-5 * product(x, y)), 0)
    assert min(one.uncertainty for one in estimates) < estimates[1].uncertainty
    assert max(one.step for one in estimates) > 1e-2
