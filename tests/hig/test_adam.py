"""Adam's step, against torch's own."""

import pytest
import torch

from hig._adam import adam_step


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("betas", [(0.9, 0.999), (0.0, 0.5)])
def test_steps_are_those_of_torch(dtype, betas):
    torch.manual_seed(0)
    ours = torch.randn(3, 4, dtype=dtype)
    theirs = ours.clone().requires_grad_()
    optimizer = torch.optim.Adam([theirs], lr=0.1, betas=betas, eps=1e-4)
    state = {}
    for _ in range(5):
        theirs.grad = torch.randn(3, 4, dtype=dtype)
        before = theirs.detach().clone()
        step = adam_step(state, theirs.grad, betas, 1e-4)
        step.move(ours, 0.1)
        optimizer.step()
        # As exact as two orders of the same operations are.
        exact = 8 * torch.finfo(dtype).eps
        torch.testing.assert_close(ours, theirs.detach(), rtol=exact, atol=exact)
        norm = (theirs.detach() - before).norm() / 0.1
        torch.testing.assert_close(step.square().sqrt(), norm, rtol=1e-4, atol=0)
