"""The filters as functions of singular values: formulas, truncation, covariance, refusals."""

import pytest
import torch

from hig._spectral.filters import (
    Damped,
    HalfInverse,
    cutoff,
    filter_gains,
    noise_level,
)

KAPPAS = [-1.0, -0.75, -0.5, -0.1, 0.0, 0.3, 0.5, 1.0]
FILTERS = [HalfInverse(kappa, rcond=0.0) for kappa in KAPPAS] + [
    Damped(1e-3),
    Damped(1e3),
]
EXTREMES = [1e-10, 1e-3, 1.0, 1e6, 1e15]


def spectrum(seed=0, size=7, scale=1.0):
    generator = torch.Generator().manual_seed(seed)
    return scale * (0.1 + torch.rand(size, generator=generator, dtype=torch.float64))


@pytest.mark.parametrize("kappa", KAPPAS)
@pytest.mark.parametrize("scale", EXTREMES)
def test_power_gain_times_value_is_the_power(kappa, scale):
    values = spectrum(scale=scale)
    response = values * HalfInverse(kappa).gain(values)
    torch.testing.assert_close(response, values**kappa, rtol=1e-13, atol=0)


@pytest.mark.parametrize("damping", [1e-8, 1e-3, 1.0, 1e6])
def test_damped_gain_times_value_is_the_damped_inverse(damping):
    values = spectrum()
    response = values * Damped(damping).gain(values)
    torch.testing.assert_close(response, values / (values**2 + damping), rtol=1e-13, atol=0)


@pytest.mark.parametrize("kappa", KAPPAS)
@pytest.mark.parametrize("damping", [1e-8, 1e-3, 1.0, 1e6])
@pytest.mark.parametrize("scale", EXTREMES)
def test_damping_reduces_the_power(kappa, damping, scale):
    values, damping = spectrum(scale=scale), damping * scale**2
    filter = HalfInverse(kappa, damping=damping)
    expected = values**kappa * values**2 / (values**2 + damping)
    torch.testing.assert_close(values * filter.gain(values), expected, rtol=1e-13, atol=0)
    if kappa == -1:
        torch.testing.assert_close(filter.gain(values), Damped(damping).gain(values))


def test_without_damping_the_power_is_the_same_to_the_last_bit():
    values = spectrum()
    assert torch.equal(HalfInverse(-1.0, damping=0.0).gain(values), values.pow(-2.0))
    assert HalfInverse(-1.0, 1e-3, 0.0) == HalfInverse(-1.0, 1e-3)


def test_the_cut_off_of_a_damped_power_is_strict_and_resolved():
    values = torch.tensor([4.0, 1.0, 0.5, 0.0], dtype=torch.float64)
    gains = filter_gains(HalfInverse(-1.0, rcond=0.125, damping=1.0), values, floor=0.0)
    assert gains.tolist() == pytest.approx([1 / 17, 1 / 2, 0.0, 0.0])
    resolved = HalfInverse(-1.0, "auto", damping=2.0).resolved(values, torch.float32)
    assert resolved.damping == 2.0 and resolved.rcond > 0 and not resolved.auto


@pytest.mark.parametrize(
    ("damping", "error"),
    [
        (-1e-300, ValueError),
        (float("nan"), ValueError),
        (float("inf"), ValueError),
        ("auto", TypeError),
        (None, TypeError),
        (True, TypeError),
    ],
)
def test_a_damping_of_a_power_that_is_none_is_refused(damping, error):
    with pytest.raises(error, match=r"damping must be .*0 for the power alone"):
        HalfInverse(-1.0, damping=damping)


@pytest.mark.parametrize("kappa", KAPPAS)
def test_the_value_at_the_cut_is_cut_and_the_next_one_kept(kappa):
    at_cut = torch.tensor(0.5, dtype=torch.float64)
    above = torch.nextafter(at_cut, torch.tensor(1.0, dtype=torch.float64))
    values = torch.stack([torch.tensor(4.0, dtype=torch.float64), above, at_cut, at_cut / 2])
    gains = filter_gains(HalfInverse(kappa, rcond=0.125), values, floor=0.0)
    assert (gains > 0).tolist() == [True, True, False, False]
    torch.testing.assert_close(gains[:2], values[:2] ** (kappa - 1), rtol=1e-13, atol=0)
    assert gains[2:].tolist() == [0.0, 0.0]


@pytest.mark.parametrize("filter", FILTERS, ids=str)
def test_all_zero_values_have_all_zero_gains(filter):
    gains = filter_gains(filter, torch.zeros(4, dtype=torch.float64), floor=0.0)
    assert gains.tolist() == [0.0] * 4


@pytest.mark.parametrize("filter", FILTERS, ids=str)
def test_a_zero_value_is_cut_without_a_relative_cutoff(filter):
    values = torch.tensor([2.0, 0.0, 1.0], dtype=torch.float64)
    gains = filter_gains(filter, values, floor=0.0)
    assert gains[1] == 0
    assert torch.isfinite(gains).all() and (gains[[0, 2]] > 0).all()


@pytest.mark.parametrize(
    ("rcond", "floor", "expected"), [(1e-6, 1e-3, 1e-3), (1e-2, 1e-3, 1e-2), (0.0, 1e-7, 1e-7)]
)
def test_the_floor_raises_the_cutoff_but_never_lowers_it(rcond, floor, expected):
    values = torch.tensor([1e-3, 100.0, 0.5], dtype=torch.float64)
    found = cutoff(HalfInverse(rcond=rcond), values, floor)
    assert found.ndim == 0
    assert float(found) == pytest.approx(100 * expected, rel=1e-12)
    kept = filter_gains(HalfInverse(rcond=rcond), values, floor) > 0
    assert kept.tolist() == [value > 100 * expected for value in values.tolist()]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("filter", [HalfInverse(), Damped()], ids=str)
def test_dtype_in_is_dtype_out(filter, dtype):
    values = spectrum().to(dtype)
    assert filter.gain(values).dtype == dtype
    assert filter_gains(filter, values, floor=1e-7).dtype == dtype


def test_only_filters_that_amplify_need_small_values():
    needs = {kappa: HalfInverse(kappa).needs_small_values for kappa in KAPPAS}
    assert needs == {kappa: kappa != 1.0 for kappa in KAPPAS}
    assert not Damped().needs_small_values


class TestAutomaticCutOff:
    """``rcond="auto"`` cuts what rounding may have made, and nothing of what it has not."""

    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
    @pytest.mark.parametrize("scale", [1e-10, 1.0, 1e10])
    def test_rounding_of_a_low_rank_matrix_is_cut(self, dtype, scale):
        generator = torch.Generator().manual_seed(0)
        for shape in [(30, 80), (80, 30), (50, 50)]:
            left, right = (
                torch.randn(size, 7, dtype=torch.float64, generator=generator) for size in shape
            )
            exact = scale * left @ right.T
            eps = torch.finfo(dtype).eps
            noise = torch.randn(shape, dtype=torch.float64, generator=generator)
            values = torch.linalg.svdvals(exact * (1 + 20 * eps * noise))
            filter = HalfInverse(rcond="auto").resolved(values, dtype)
            assert int((filter_gains(filter, values, 0.0) > 0).sum()) == 7

    def test_the_cut_is_the_noise_level(self):
        values = torch.tensor([3.0, 1.0, 0.1], dtype=torch.float64)
        level = noise_level(values, torch.float32)
        rms = ((9 + 1 + 0.01) / 3) ** 0.5
        assert float(level) == pytest.approx(256 * torch.finfo(torch.float32).eps * rms)
        resolved = HalfInverse(kappa=-0.3, rcond="auto").resolved(values, torch.float32)
        assert resolved == HalfInverse(kappa=-0.3, rcond=float(level) / 3)
        assert HalfInverse(rcond=1e-3).resolved(values, torch.float32) == HalfInverse(rcond=1e-3)

    def test_a_zero_jacobian_is_cut_whole(self):
        values = torch.zeros(4, dtype=torch.float64)
        filter = HalfInverse(rcond="auto").resolved(values, torch.float32)
        assert not filter_gains(filter, values, 0.0).any()
