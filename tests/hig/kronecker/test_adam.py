"""Adam's step, against torch's own."""

import pytest
import torch

from hig._kronecker.adam import accumulable, adam_step


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
        torch.testing.assert_close(step.norm(), norm, rtol=1e-4, atol=0)


@pytest.mark.parametrize("dtype", [torch.complex64, torch.complex128])
def test_complex_parameters_are_real_and_imaginary_parts(dtype):
    torch.manual_seed(0)
    ours = torch.randn(3, 2, dtype=dtype)
    theirs = ours.clone().requires_grad_()
    optimizer, state = torch.optim.Adam([theirs], lr=0.1), {}
    for _ in range(5):
        theirs.grad = torch.randn(3, 2, dtype=dtype)
        adam_step(
            state, accumulable(theirs.grad.conj().resolve_conj().conj()), (0.9, 0.999), 1e-8
        ).move(ours, 0.1)
        optimizer.step()
        torch.testing.assert_close(ours, theirs.detach(), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_means_of_half_precision_gradients_do_not_stand_still(dtype):
    """In bfloat16 0.999 times a number is the same number: a mean square would never fall."""
    parameter, state = torch.zeros(2, dtype=dtype), {}
    reference = {}
    for number in range(30):
        gradient = torch.full((2,), 300.0 if number == 0 else 0.0, dtype=dtype)
        step = adam_step(state, accumulable(gradient), (0.9, 0.9), 1e-8)
        adam_step(reference, gradient.double(), (0.9, 0.9), 1e-8)
        step.move(parameter, 1e-3)
        torch.testing.assert_close(
            state["exp_avg_sq"].double(), reference["exp_avg_sq"], rtol=1e-5, atol=0
        )
    assert parameter.dtype == dtype and bool(torch.isfinite(parameter).all())


@pytest.mark.filterwarnings("ignore:Sparse invariant checks")  # of torch 2.11, asked for or not
def test_sparse_gradients_are_densified():
    dense = torch.tensor([[0.0, 0.0], [1.0, 2.0], [3.0, 4.0]])
    twice = torch.sparse_coo_tensor(
        [[1, 1, 2]], [[0.5, 1.0], [0.5, 1.0], [3.0, 4.0]], (3, 2), check_invariants=True
    )
    assert torch.equal(accumulable(twice), dense)  # entries of one place add up
