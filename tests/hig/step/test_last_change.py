"""Change of all outputs by the last step, of which a sketch has drawn other directions since."""

import pytest
import torch

import hig
from hig._step.last_change import LastChange
from tests.hig.networks import build, least_squares


@pytest.fixture
def judged(monkeypatch):
    """The changes that rules have judged last steps by, None for those that they have not."""
    found = []
    call = LastChange.__call__

    def watched(self, start):
        found.append(call(self, start))
        return found[-1]

    monkeypatch.setattr(LastChange, "__call__", watched)
    return found


@pytest.mark.parametrize("count", [1, 2])
def test_the_change_of_the_first_steps_and_of_every_third(judged, count):
    network, inputs = build("mlp")
    optimizer = hig.HIG(network.parameters(), rcond=1e-4, sketch=count, lr=0.5, step_rule="trust")
    closure, before, changes = least_squares(network, inputs), None, [None]
    for _ in range(25):
        present = network(inputs).detach().flatten()
        changes.append(None if before is None else present - before)
        before = present
        optimizer.step(closure)
    assert len(judged) == 24
    seen = [change is not None for change in judged]
    assert seen[:15] == [True] * 15
    assert seen[15:] == [step % 3 == 0 for step in range(17, 26)]
    for found, expected in zip(judged, changes[2:], strict=True):
        if found is not None:
            torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-14)


def test_parameters_are_those_of_the_step_after_a_failed_evaluation(monkeypatch):
    network, inputs = build("mlp")
    optimizer = hig.HIG(network.parameters(), rcond=1e-4, sketch=1)
    inner, calls = least_squares(network, inputs), []

    def closure():
        calls.append(None)
        if len(calls) == fails:
            raise OSError("disk full")
        return inner()

    fails = -1
    optimizer.step(closure)
    fails = len(calls) + 2  # the first evaluation of the next step looks at the last one
    before = [parameter.detach().clone() for parameter in network.parameters()]
    with pytest.raises(OSError, match="disk full"):
        optimizer.step(closure)
    for parameter, value in zip(network.parameters(), before, strict=True):
        assert torch.equal(parameter, value)
