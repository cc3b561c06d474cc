"""Adam's steps of each loss, combined, against their formulas in float64."""

import pytest
import torch

from hig.conflictfree import SeparateMomentumOperator
from tests.hig.conflictfree.matrices import assert_follows, random_matrix, textbook_config


def separate(gradients, losses, beta_1, beta_2):
    """Adam's step of each loss, combined."""
    for seen in range(1, len(gradients) + 1):
        steps = []
        for loss in range(losses):
            own = [gradient for index, gradient in gradients[:seen] if index == loss]
            count = len(own)
            first = sum((1 - beta_1) * beta_1 ** (count - 1 - k) * g for k, g in enumerate(own))
            second = sum((1 - beta_2) * beta_2 ** (count - 1 - k) * g**2 for k, g in enumerate(own))
            if count:
                first, second = first / (1 - beta_1**count), second / (1 - beta_2**count)
                steps.append(first / (second.sqrt() + 1e-8))
        complete = len(steps) == losses
        yield textbook_config(torch.stack(steps)) if complete else torch.zeros_like(gradients[0][1])


@pytest.mark.parametrize("losses", [1, 2, 3])
@pytest.mark.parametrize("betas", [(0.9, 0.999), (0.5, 0.7), (0.0, 0.0)])
def test_the_published_algorithm(losses, betas):
    assert_follows(SeparateMomentumOperator, separate, losses, betas)


def test_a_loss_without_a_gradient_keeps_its_second_moment():
    operator = SeparateMomentumOperator(2)
    operator.calculate_gradient([0, 1], random_matrix((2, 4)))
    kept = operator.s[0].clone()
    operator.calculate_gradient(1, torch.ones(4, dtype=torch.float64))
    assert torch.equal(operator.s[0], kept)
    assert len(operator.s) == 2
