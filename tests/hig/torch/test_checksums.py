"""Checksums: equal for equal values, different for a changed bit, place, or order."""

import pytest
import torch

from hig._torch.checksums import checksum, digest

DTYPES = [torch.float16, torch.bfloat16, torch.float32, torch.float64]


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_single_bit_of_any_entry_counts(dtype):
    torch.manual_seed(0)
    tensors = [torch.randn(4, 3).to(dtype), torch.randn(5).to(dtype)]
    expected = checksum(tensors)
    assert checksum([tensor.clone() for tensor in tensors]) == expected
    for tensor in tensors:
        bits = tensor.view(torch.int16 if tensor.element_size() == 2 else torch.int32).flatten()
        for index in range(len(bits)):
            bits[index] ^= 1
            assert checksum(tensors) != expected
            bits[index] ^= 1
    assert checksum(tensors) == expected


def test_the_sum_is_that_over_the_bits():
    tensors = [torch.tensor([1.0, -2.0]), torch.tensor([0.5])]
    bits = [[int(v.view(torch.int32)) for v in tensor] for tensor in tensors]
    assert checksum(tensors) == sum(bits[0]) + 2 * sum(bits[1])


def test_tensors_do_not_change_places():
    first, second = torch.tensor([1.0, 2.0]), torch.tensor([3.0, 4.0])
    assert checksum([first, second]) != checksum([second, first])


def test_strides_graphs_and_kinds_of_zero():
    matrix = torch.randn(3, 4, dtype=torch.float64)
    assert checksum([matrix.T]) == checksum([matrix.T.contiguous()])
    assert checksum([matrix.clone().requires_grad_()]) == checksum([matrix])
    assert checksum([torch.zeros(1)]) != checksum([-torch.zeros(1)])
    assert checksum([]) == 0


def test_digests_of_facts():
    assert digest("lr", 0.5, [1, 2]) == digest("lr", 0.5, [1, 2])
    others = [("lr", 0.5), ("lr", 0.5, [2, 1]), ("lr", 0.25, [1, 2]), ("lr", "0.5", [1, 2])]
    assert len({digest(*facts) for facts in [("lr", 0.5, [1, 2]), *others]}) == 5
    assert 0 <= digest() < 2**32
