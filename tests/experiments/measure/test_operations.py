import pytest
import torch
from torch.autograd.profiler import profile, record_function

from experiments._measure.operations import (
    OperationCounter,
    Operations,
    Rates,
    measure_rates,
)


def test_products_and_bytes_are_counted_by_phase():
    a, b = torch.randn(3, 4), torch.randn(4, 5)
    counter = OperationCounter("step: ")
    with profile(use_kineto=False), counter:
        with record_function("step: product"):
            a @ b
            _ = a.T  # a view is no work
        with record_function("other"):
            a + a
    product, rest = counter.phases["product"], counter.phases[""]
    assert (product.calls, dict(product.flops)) == (1, {torch.float32: 2 * 3 * 4 * 5})
    assert product.bytes == 4 * (12 + 20 + 15)
    assert (rest.calls, dict(rest.flops), rest.bytes) == (1, {}, 4 * 3 * 12)


def test_an_inner_mark_does_not_hide_the_phase():
    counter = OperationCounter("step: ")
    with profile(use_kineto=False), counter, record_function("step: all"), record_function("in"):
        torch.ones(2)
    assert counter.phases["all"].calls == 1


def test_complex_products_are_four_real_ones():
    a = torch.randn(3, 3, dtype=torch.complex128)
    with OperationCounter("") as counter:
        a @ a
    assert dict(counter.phases[""].flops) == {torch.float64: 4 * 2 * 27}


@pytest.mark.parametrize(("flops", "moved", "expected"), [(200, 10, 2.0), (100, 40, 4.0)])
def test_the_floor_is_the_larger_of_both(flops, moved, expected):
    rates = Rates({torch.float32: 100.0}, bytes=10.0, launch=1.0)
    operations = Operations(3, {torch.float32: flops}, moved)
    assert rates.floor(operations) == expected


def test_rates_are_those_of_a_machine():
    rates = measure_rates("cpu", size=128, repeats=2)
    assert all(1e7 < rate < 1e15 for rate in rates.flops.values())
    assert 1e7 < rates.bytes < 1e14 and 1e-8 < rates.launch < 1e-2
