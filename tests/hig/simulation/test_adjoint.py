"""Chains of step Jacobians, in one piece and in several, against products written out."""

from itertools import pairwise

import pytest
import torch

from hig._simulation.adjoint import (
    _products_by_doubling,
    adjoint,
    real_cotangents,
    suffix_products,
    whole_jacobian,
)
from tests.textbook import relative_error

DTYPES = [torch.float64, torch.complex128]


@pytest.mark.parametrize("times", [1, 2, 3, 8, 13])
def test_products_one_after_the_other_and_in_logarithmic_depth(times):
    torch.manual_seed(0)
    matrices = torch.randn(times, 2, 3, 3, dtype=torch.float64)
    products = suffix_products(matrices)
    assert products.shape == (times + 1, 2, 3, 3)
    expected = torch.eye(3, dtype=torch.float64)
    for t in range(times - 1, -1, -1):
        expected = expected @ matrices[t]
        assert relative_error(products[t], expected) < 1e-13
    assert torch.equal(products[-1, 0], torch.eye(3, dtype=torch.float64))
    assert relative_error(_products_by_doubling(matrices), products[:-1]) < 1e-13


def chain(dtype, times=7, batch=2, size=3, controls=2):
    torch.manual_seed(0)
    by_state = torch.randn(times, batch, size, size, dtype=dtype)
    return by_state, torch.randn(times, batch, size, controls, dtype=dtype)


def pieces(by_state, by_control, cuts):
    edges = [0, *cuts, len(by_state)]
    runs = [slice(*pair) for pair in pairwise(edges)]
    return [(by_state[run], by_control[run]) for run in reversed(runs)]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("cuts", [(), (3,), (1, 2, 6)])
def test_whole_jacobian(dtype, cuts):
    by_state, by_control = chain(dtype)
    found_state, found_controls = whole_jacobian(pieces(by_state, by_control, cuts))
    assert found_controls.shape == (2, 3, 7 * 2)
    found_controls = found_controls.unflatten(2, (7, 2))
    product = torch.eye(3, dtype=dtype)
    for t in range(6, -1, -1):
        assert relative_error(found_controls[..., t, :], product @ by_control[t]) < 1e-13
        product = product @ by_state[t]
    assert relative_error(found_state, product) < 1e-13


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("cuts", [(), (3,), (1, 2, 6)])
@pytest.mark.parametrize("with_states", [True, False])
def test_adjoint_is_the_transposed_derivative(dtype, cuts, with_states):
    """<w, d final> + <w_t, d s_t> = <adjoint of start, d start> + <adjoint of controls, d c>."""
    by_state, by_control = chain(dtype)
    of_final = torch.randn(2, 1, 3, dtype=dtype)
    of_states = torch.randn(2, 8, 1, 3, dtype=dtype) if with_states else None
    start, change = torch.randn(2, 3, 1, dtype=dtype), torch.randn(7, 2, 2, 1, dtype=dtype)
    states = [start]
    for a, b, c in zip(by_state, by_control, change, strict=True):
        states.append(a @ states[-1] + b @ c)
    expected = (of_final.conj() @ states[-1]).sum()
    if with_states:
        expected = expected + (of_states.conj() @ torch.stack(states, 1)).sum()
    of_start, of_controls = adjoint(pieces(by_state, by_control, cuts), of_final, of_states)
    found = (of_start.conj() @ start).sum()
    found = found + (of_controls.conj() @ change.transpose(0, 1)).sum()
    assert abs(found - expected) < 1e-10 * abs(expected)


@pytest.mark.parametrize("dtype", DTYPES)
def test_real_cotangents(dtype):
    torch.manual_seed(0)
    of_final = torch.randn(2, 1, 3, dtype=dtype)
    by_controls = torch.randn(2, 3, 5, dtype=dtype)
    found = real_cotangents(of_final, by_controls)
    assert found.dtype == torch.float64
    assert relative_error(found, torch.real(of_final @ by_controls.conj())) < 1e-14
