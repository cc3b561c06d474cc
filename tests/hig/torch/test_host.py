"""Conditions that are read together."""

import pytest
import torch
from torch.overrides import TorchFunctionMode

import hig
from hig._torch.host import Checks
from tests.hig.networks import LAYERED, build, least_squares

TO_THE_HOST = {
    torch.Tensor.item, torch.Tensor.tolist, torch.Tensor.__bool__, torch.Tensor.__float__,
    torch.Tensor.__int__, torch.Tensor.cpu, torch.Tensor.numpy, torch.Tensor.nonzero,
    torch.nonzero, torch.equal, torch.allclose,
}  # fmt: skip


class Transfers(TorchFunctionMode):
    """Counts what makes the host wait for the device."""

    def __init__(self):
        super().__init__()
        self.count = 0

    def __torch_function__(self, function, types, args=(), kwargs=None):
        self.count += function in TO_THE_HOST
        return function(*args, **(kwargs or {}))


def refuse(text):
    def otherwise():
        raise ValueError(text)

    return otherwise


def test_the_first_that_does_not_hold_is_told():
    checks = Checks()
    checks.expect(torch.tensor(True), refuse("first"))
    checks.expect(torch.tensor([False]), refuse("second"))
    checks.expect(torch.tensor(False), refuse("third"))
    with pytest.raises(ValueError, match="second"):
        checks.settle()
    checks.settle()  # has been told


def test_all_are_read_at_once():
    checks = Checks()
    for _ in range(5):
        checks.expect(torch.tensor(True), refuse("never"))
    with Transfers() as transfers:
        checks.settle()
        checks.settle()
    assert transfers.count == 1


@pytest.mark.parametrize("name", LAYERED)
def test_a_step_makes_the_host_wait_once(name):
    network, inputs = build(name, dtype=torch.float32)
    closure = least_squares(network, inputs)
    optimizer = hig.HIG(network.parameters(), rcond=1e-3)
    optimizer.step(closure)
    with Transfers() as transfers:
        optimizer.step(closure)
    assert transfers.count == 1


def test_the_counter_counts():
    with Transfers() as transfers:
        bool(torch.tensor(True))
        float(torch.tensor(1.0))
        torch.tensor([1.0]).tolist()
    assert transfers.count == 3


@pytest.mark.parametrize("method", ["gram", "svd", "lanczos"])
def test_layers_that_are_not_exact_are_not_trusted_again(method):
    network, inputs = build("batch norm")
    optimizer = hig.HIG(network.parameters(), lr=1e-3, rcond=1e-2, method=method)
    built = []
    for _ in range(2):
        optimizer.step(least_squares(network, inputs))
        assert "products" in optimizer.report.engine or "rows" in optimizer.report.engine
        assert not optimizer._lineariser.memory.optimistic
        built.append(len(optimizer.report.notes))
    assert built[0] == built[1]


def test_a_loss_that_is_not_finite_is_told_before_the_jacobian():
    network, inputs = build("mlp")

    def closure():
        prediction = network(inputs)
        return prediction.sum() * float("nan"), prediction

    with pytest.raises(hig.NonFiniteError, match="the loss is nan although the prediction"):
        hig.HIG(network.parameters()).step(closure)
