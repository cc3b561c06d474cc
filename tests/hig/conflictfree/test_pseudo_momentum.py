"""M-ConFIG against its published algorithm in float64."""

import pytest
import torch

from hig.conflictfree import PseudoMomentumOperator, SeparateMomentumOperator
from tests.hig.conflictfree.matrices import assert_follows, random_matrix, textbook_config


def pseudo(gradients, losses, beta_1, beta_2):
    """M-ConFIG, algorithm 1, from the whole history of (index, gradient)."""
    size = len(gradients[0][1])
    moments, counts = [torch.zeros(size, dtype=torch.float64) for _ in range(losses)], [0] * losses
    moment, second, t = torch.zeros_like(moments[0]), torch.zeros_like(moments[0]), 0
    for index, gradient in gradients:
        moments[index] = beta_1 * moments[index] + (1 - beta_1) * gradient
        counts[index] += 1
        direction = torch.zeros_like(moment)
        if min(counts):
            t += 1
            hats = [m / (1 - beta_1**c) for m, c in zip(moments, counts, strict=True)]
            combined = textbook_config(torch.stack(hats))
            estimate = (combined * (1 - beta_1**t) - beta_1 * moment) / (1 - beta_1)
            moment = beta_1 * moment + (1 - beta_1) * estimate
            second = beta_2 * second + (1 - beta_2) * estimate**2
            direction = combined / ((second / (1 - beta_2**t)).sqrt() + 1e-8)
        yield direction


@pytest.mark.parametrize("losses", [1, 2, 3])
@pytest.mark.parametrize("betas", [(0.9, 0.999), (0.5, 0.7), (0.0, 0.0)])
def test_the_published_algorithm(losses, betas):
    assert_follows(PseudoMomentumOperator, pseudo, losses, betas)


def test_a_state_of_first_moments_alone_is_refused():
    state = SeparateMomentumOperator(2).state_dict()
    with pytest.raises(ValueError, match="the state lacks fake_m, t, it has"):
        PseudoMomentumOperator(2).load_state_dict(state)


def test_directions_are_counted_from_the_first_of_all_losses():
    operator = PseudoMomentumOperator(2)
    for step, gradient in enumerate(random_matrix((5, 4))):
        operator.calculate_gradient(int(step == 2), gradient)
    assert operator.t == 3  # not the two before the second loss was seen
    assert operator.s.shape == operator.fake_m.shape == (4,)
