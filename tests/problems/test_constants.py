"""Constants of a simulation as tensors."""

import torch

from problems._constants import constant


def test_values_are_those_given_and_made_once():
    cpu = torch.device("cpu")
    found = constant((1.0, 0.5), torch.float64, cpu)
    assert found.tolist() == [1.0, 0.5] and found.dtype == torch.float64
    assert constant((1.0, 0.5), torch.float64, cpu) is found
    assert constant(2 + 1j, torch.complex64, cpu).item() == 2 + 1j


def test_one_made_in_an_evaluation_serves_in_training():
    with torch.inference_mode():
        factor = constant((1.25, 3.5), torch.float64, torch.device("cpu"))
    given = torch.ones(2, dtype=torch.float64, requires_grad=True)
    (given * factor).square().sum().backward()
    assert given.grad.tolist() == [2 * 1.25**2, 2 * 3.5**2]
