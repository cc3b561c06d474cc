"""Process ranks that step together when one fails, or when they do not fit together.

Two processes run all checks but that of a death; each check is a test of its own.
"""

import os
import re
import time

import pytest
import torch
import torch.distributed as dist
from torch import nn

import hig
from tests.faults import OUTPUTS
from tests.hig import processes
from tests.textbook import flat

GRAM = {"rcond": 1e-2, "method": "gram", "lr": 0.1}
# All others end the process, with their traceback.
RAISED = (ArithmeticError, KeyError, OSError, RuntimeError, ValueError)


class Case:
    """A network with its closure, and what stepping raises."""

    def __init__(self, seed=0, inputs=None, width=3, dtype=torch.float64, **options):
        torch.manual_seed(seed)
        self.model = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, width)).to(dtype)
        self.inputs = torch.ones(2, 4, dtype=dtype) if inputs is None else inputs
        self.optimizer = hig.HIG(self.model.parameters(), **{**GRAM, **options})

    def closure(self):
        prediction = self.model(self.inputs)
        return prediction.square().mean(), prediction

    def raised(self, closure=None):
        """Name and text of the error, and whether it left the parameters as they were."""
        before = flat(self.model.parameters())
        try:
            self.optimizer.step(closure or self.closure)
        except RAISED as error:
            same = torch.equal(before, flat(self.model.parameters()))
            return type(error).__name__, str(error), same
        return None


def closure_raises(rank):
    case = Case()

    def closure():
        if rank == 1:
            raise KeyError("no such file")
        return case.closure()

    found = case.raised(closure)
    return found, case.raised()  # afterwards they continue together


def second_evaluation_raises(rank):
    case, calls = Case(step_rule="trust"), []

    def closure():
        calls.append(None)
        if rank == 1 and len(calls) == 2:
            raise OSError("disk full")
        return case.closure()

    return case.raised(closure)


def nan_in_prediction(rank):
    return Case(inputs=torch.full((2, 4), float("nan" if rank == 0 else 1)).double()).raised()


def nan_in_jacobian(rank):
    case = Case()

    def closure():
        prediction = case.model(case.inputs)
        if rank == 1:
            prediction = OUTPUTS["NaN in the Jacobian"](prediction)
        return prediction.square().mean(), prediction

    return case.raised(closure)


def other_weights(rank):
    return Case(seed=rank).raised()


def other_network(rank):
    return Case(width=3 + rank).raised()


def other_outputs(rank):
    case = Case()

    def closure():
        prediction = case.model(case.inputs)[:, : 3 - rank]
        return prediction.square().mean(), prediction

    return case.raised(closure)


def other_dtype(rank):
    return Case(dtype=(torch.float64, torch.float32)[rank]).raised()


def other_rate(rank):
    return Case(lr=0.1 + rank).raised()


def other_last_direction(rank):
    case = Case(momentum=0.5)
    assert case.raised() is None
    if rank == 1:
        case.optimizer.state[case.model[0].bias] = {"direction": torch.zeros(6).double()}
    return case.raised()


def other_sketch(rank):
    return Case(sketch=1 + rank).raised()


def sketch_on_one_rank_only(rank):
    return Case(sketch=(None, "auto")[rank]).raised()


def other_parameters_used(rank):
    case = Case()

    def closure():
        prediction = (case.model if rank else case.model[2])(torch.ones(2, 6 - 2 * rank).double())
        return prediction.square().mean(), prediction

    return case.raised(closure)


def layerwise_on_one_rank_only(rank):
    # A statistic over the batch: of one sample it is nothing that samples share.
    torch.manual_seed(0)
    model = nn.Linear(3, 2).double()
    optimizer = hig.HIG(model.parameters(), engine="layerwise", **GRAM)
    inputs = torch.randn(1 + 2 * rank, 3, dtype=torch.float64)

    def closure():
        prediction = model(inputs)
        prediction = prediction - 0.5 * prediction.sum(0, keepdim=True) * (len(inputs) > 1)
        return prediction.square().mean(), prediction

    try:
        optimizer.step(closure)
    except RAISED as error:
        return type(error).__name__, str(error), True


def several_losses(rank):
    """Another number of them, other operators, and one that cannot be combined; then steps."""
    case, parameters = Case(), lambda: case.model.parameters()

    def raises(matrix):
        if rank == 1:
            raise KeyError("no weight")
        return matrix.sum(0)

    case.optimizer = hig.MultiHIG(parameters())
    found = [case.raised(lambda: [case.closure()] * (1 + rank))]
    case.optimizer = hig.MultiHIG(parameters(), operator=(added, raises)[rank])
    found.append(case.raised(lambda: [case.closure(), case.closure()]))
    case.optimizer = hig.MultiHIG(parameters(), operator=raises)
    found.append(case.raised(lambda: [case.closure(), case.closure()]))
    case.optimizer = hig.MultiHIG(parameters(), process_group=None)
    return found, case.raised(lambda: [case.closure()])


def added(matrix):
    return matrix.sum(0)


def group_of_others(rank):
    group = dist.new_group([0])
    try:
        case = Case(process_group=group)
    except ValueError as error:
        return str(error)
    return case.raised(), case.optimizer.report.communication


FAILURES = {f.__name__: f for f in (
    closure_raises, second_evaluation_raises, nan_in_prediction, nan_in_jacobian, other_weights,
    other_network, other_outputs, other_dtype, other_rate, other_last_direction,
    other_sketch, sketch_on_one_rank_only, other_parameters_used,
    layerwise_on_one_rank_only, several_losses, group_of_others,
)}  # fmt: skip


def every_failure(rank):
    return {name: check(rank) for name, check in FAILURES.items()}


def one_dies(rank):
    case = Case()
    assert case.raised() is None
    if rank == 1:
        os._exit(0)
    start = time.monotonic()
    return case.raised(), time.monotonic() - start


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    return processes.run(every_failure, 2, tmp_path_factory.mktemp("two"))


def test_an_error_in_one_closure_is_raised_by_all(two):
    (other, after), (own, after_own) = (rank["closure_raises"] for rank in two)
    assert own == ("KeyError", "'no such file'", True)
    assert other[0] == "RankError" and other[2]
    assert other[1].startswith("process rank 1 failed with KeyError: 'no such file'")
    assert after is None and after_own is None


def test_an_error_while_a_step_is_measured_undoes_it_everywhere(two):
    other, own = (rank["second_evaluation_raises"] for rank in two)
    assert own == ("OSError", "disk full", True)
    assert other[0] == "RankError" and "disk full" in other[1] and other[2]


@pytest.mark.parametrize(
    ("name", "guilty", "text"),
    [("nan_in_prediction", 0, "the prediction"), ("nan_in_jacobian", 1, "the Jacobian")],
)
def test_nan_on_one_rank_is_a_non_finite_error_on_all(two, name, guilty, text):
    found = [rank[name] for rank in two]
    assert all(kind == "NonFiniteError" and unchanged for kind, _, unchanged in found)
    assert found[guilty][1].startswith(f"{text} holds NaN")
    assert found[1 - guilty][1].startswith(f"on process rank {guilty}: {text} holds NaN")


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("other_weights", "values of the parameters .* same seed"),
        ("other_network", "number of parameters .* got 51 on rank 0, 58 on rank 1; build the same"),
        ("other_outputs", "outputs per sample .* got 3 on rank 0, 2 on rank 1"),
        ("other_dtype", "shapes and dtypes of the parameters"),
        ("other_rate", "learning rates, filter and other settings .* schedulers on all"),
        ("other_last_direction", "learning rates, filter and other settings"),
        ("other_sketch", "learning rates, filter and other settings"),
        ("sketch_on_one_rank_only", "learning rates, filter and other settings"),
        ("other_parameters_used", "the Jacobian's columns .* same network"),
    ],
)
def test_what_must_be_equal(two, name, text):
    for rank in two:
        kind, found, unchanged = rank[name]
        assert kind == "ValueError" and unchanged
        assert re.search(text, found), found


def test_an_engine_that_one_rank_refuses_is_refused_by_all(two):
    other, own = (rank["layerwise_on_one_rank_only"] for rank in two)
    assert own[0] == other[0] == "SampleDependenceError"
    assert other[1].startswith("on process rank 1: the layerwise engine")


def test_several_losses_that_differ(two):
    for rank, ((number, operator, failed), alone) in enumerate(r["several_losses"] for r in two):
        assert number[0] == operator[0] == "ValueError"
        assert "the number of losses must be the same" in number[1]
        assert operator[1].startswith("for loss 0 of 2: the checksum of learning rates")
        assert failed[0] == ("RankError", "KeyError")[rank] and "no weight" in failed[1]
        assert number[2] and operator[2] and failed[2]
        assert alone is None


def test_a_group_that_others_form(two):
    member, outsider = (rank["group_of_others"] for rank in two)
    assert member == (None, None)
    assert outsider.startswith("this process does not belong to the process_group")


def test_a_process_that_dies_is_an_error_of_the_others(tmp_path):
    (error, seconds), lost = processes.run(one_dies, 2, tmp_path)
    assert lost is None
    assert error[0] == "RankError" and error[2]
    assert error[1].startswith("process rank 0 of 2: a collective failed")
    assert seconds < 20
