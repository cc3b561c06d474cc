"""CUDA graphs: warm-up, record, replay and decisions, with a tape in place of the GPU's graphs."""

import pytest
import torch

from hig._torch import cuda_graph as cuda_graph_module
from hig._torch.cuda_graph import WARM_UPS, GraphedFunction, cached_decision
from tests.hig.tape import Tape


@pytest.fixture
def tapes(monkeypatch):
    """The tapes recorded in a test."""
    recorded = []

    def record(compute):
        recorded.append(Tape())
        with recorded[-1]:
            return recorded[-1], compute()

    monkeypatch.setattr(cuda_graph_module, "record", record)
    monkeypatch.setattr(cuda_graph_module, "warm_up", lambda compute: compute())
    return recorded


def test_a_computation_is_replayed_after_the_warm_up(tapes):
    recording, x, calls = GraphedFunction(), torch.zeros(3), []

    def compute():
        calls.append(1)
        return (2 * x).sum()

    for number in range(8):
        x.fill_(number)
        assert float(recording("key", compute)) == 6 * number
        assert len(calls) == min(number, WARM_UPS) + 1
    assert [tape.replays for tape in tapes] == [8 - WARM_UPS]


def test_another_key_starts_another_record(tapes):
    recording, x = GraphedFunction(), torch.ones(3)
    for factor in (2, 5, 2):
        for _ in range(WARM_UPS + 2):
            assert float(recording(factor, lambda f=factor: (f * x).sum())) == 3 * factor
    assert [tape.replays for tape in tapes] == [2, 2, 2]


def test_decisions_are_those_of_the_first_run(tapes):
    recording, x, answers = GraphedFunction(), torch.tensor([1.0]), []

    def compute():
        first = cached_decision(lambda: answers.append("sign") or bool(x > 0))
        second = cached_decision(lambda: answers.append("size") or float(x))
        return (x if first else -x) + second

    for value in (1.0, -2.0, 3.0, -4.0, 5.0):
        x.fill_(value)
        assert float(recording("key", compute)) == value + 1.0  # as decided for 1
    assert answers == ["sign", "size"]
    assert cached_decision(lambda: bool(x > 0)) and len(answers) == 2  # outside, each time


def test_decisions_inside_a_decided_computation_belong_to_it(tapes):
    outer, inner, asked = GraphedFunction(), GraphedFunction(), []
    x = torch.ones(2)

    def nested():
        return inner("inner", lambda: x * cached_decision(lambda: asked.append("inner") or 2.0))

    def compute():
        return cached_decision(lambda: asked.append("outer") or 3.0) * nested()

    for _ in range(WARM_UPS):
        assert torch.equal(outer("outer", compute), torch.full((2,), 6.0))
    assert asked == ["outer", "inner"]


@pytest.mark.parametrize(
    ("given", "text"),
    [
        (([torch.zeros(2)], 1, "auto"), "the parameters are on cpu"),
        (([torch.zeros(2, device="meta")], 1, "auto"), "the parameters are on meta"),
    ],
)
def test_where_it_cannot_be(given, text):
    with pytest.raises(ValueError, match=text):
        cuda_graph_module.check_recordable(*given)


class OnAGpu:
    device = torch.device("cuda")


@pytest.mark.parametrize(
    ("processes", "method", "text"),
    [(2, "auto", "and 2 take this one together"), (1, "lanczos", "method='lanczos' takes")],
)
def test_steps_that_ask_the_host(processes, method, text):
    with pytest.raises(ValueError, match=text):
        cuda_graph_module.check_recordable([OnAGpu()], processes, method)


def test_the_tape_refuses_what_a_graph_refuses():
    with pytest.raises(RuntimeError, match="the host would wait"), Tape():
        float(torch.ones(1).sum())


def test_the_tape_replays():
    given = torch.tensor([1.0, 2.0])
    tape = Tape()
    with tape:
        found = (given.exp().view(2, 1) + 1).add_(given.view(2, 1)).sum()
    given.copy_(torch.tensor([3.0, 4.0]))
    tape.replay()
    torch.testing.assert_close(found, (given.exp() + 1 + given).sum())
