"""Bisection finds the entries of outputs and inputs whose derivative is wrong."""

import pytest
import torch

from hig.testing._line import estimate
from hig.testing._localise import localise
from tests.hig.testing.simulators import INPUTS, Scaled, factors, smooth
from tests.hig.testing.test_line import line_of


@pytest.mark.parametrize("error", [-1.0, 0.05])
def test_a_wrong_output_is_found(error):
    def simulate(x):
        y = smooth(x)
        return Scaled.apply(y, factors(y.shape, "one entry", error))

    line = line_of(simulate, (INPUTS,))
    found, place = localise(line, estimate(line, 1e-3, seed=0))
    assert place == ", in samples [2]"
    assert found.cotangent.view(4, 4).nonzero().tolist() == [[2, 1]]
    assert found.error == pytest.approx(abs(error), rel=1e-3)


@pytest.mark.parametrize("error", [-1.0, 0.05])
def test_a_wrong_input_is_found(error):
    def simulate(x):
        return smooth(Scaled.apply(x, factors(x.shape, "one entry", error)))

    line = line_of(simulate, (INPUTS,))
    whole = estimate(line, 1e-3, seed=0)
    found, place = localise(line, whole)
    assert place == ", in samples [2]"
    assert found.error > whole.error
    assert found.error == pytest.approx(abs(error), rel=0.1)


def test_errors_that_are_everywhere_have_no_place():
    line = line_of(lambda x: smooth(Scaled.apply(x, torch.tensor(1.5))), (INPUTS,))
    found, _ = localise(line, estimate(line, 1e-3, seed=0))
    assert found.error == pytest.approx(0.5, rel=1e-6)
    assert found.claimed / found.expected == pytest.approx(1.5, rel=1e-6)
