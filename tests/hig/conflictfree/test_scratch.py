"""Memory for float64 copies: reused, and never by two at a time."""

import threading

import pytest
import torch

from hig.conflictfree import ConFIGOperator, PCGradOperator
from hig.conflictfree._gradient_matrix import SMALL_SIZE, GradientMatrix
from hig.conflictfree._scratch import give_back, take


def test_a_block_is_reused_by_one_at_a_time():
    large = take(10_000_019)  # no other test leaves as much
    give_back(large)
    first, second = take(1000), take(1000)
    assert first.data_ptr() == large.data_ptr() and first.numel() == large.numel()
    assert second.data_ptr() != large.data_ptr()
    give_back(second)
    give_back(first)  # the larger one is kept
    assert take(10_000_019).data_ptr() == large.data_ptr()


def test_threads_have_blocks_of_their_own():
    mine, others = take(1000), []
    give_back(mine)
    thread = threading.Thread(target=lambda: others.append(take(1000)))
    thread.start()
    thread.join()
    assert others[0].data_ptr() != mine.data_ptr()


def test_blocks_of_inference_mode_may_be_written_outside():
    with torch.inference_mode():
        memory = take(20_000_003)
    assert not memory.is_inference()
    assert memory.zero_().dtype == torch.float64


@pytest.mark.parametrize("losses", [2, 3])
@pytest.mark.parametrize("operator", [PCGradOperator, ConFIGOperator])
def test_memory_that_is_used_again_is_no_ones_else(losses, operator):
    size = SMALL_SIZE + 1
    torch.manual_seed(losses)
    first, second = (torch.randn(losses, size).unbind() for _ in range(2))
    expected = operator()(torch.stack(first).double()).float()
    kept = GradientMatrix(first)  # holds its memory while others work
    found = operator()(first)
    with torch.inference_mode():
        operator()(second)
    operator()(second)
    assert torch.equal(found, operator()(first))
    assert torch.allclose(found, expected, rtol=1e-5, atol=1e-6 * float(expected.abs().max()))
    factors = [1.0] * losses
    again = GradientMatrix(first)
    again = again.lift(again.combination(factors))
    assert torch.equal(kept.lift(kept.combination(factors)), again)
