"""Earlier parameters in the steps of the trust rule: the last point and the safe one."""

import copy
import functools
import io
import pickle

import pytest
import torch
from torch import nn

import hig
from hig._step.earlier_points import EarlierPoints, Point
from tests.hig.networks import build, least_squares
from tests.hig.step.earlier_runs import EACH, KINDS, MULTI, Run, move, warm


def equal(first, second):
    assert len(first) == len(second)
    return all(
        one.keys() == two.keys() and all(torch.equal(one[name], two[name]) for name in one)
        for one, two in zip(first, second, strict=True)
    )


@EACH
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_batch_that_was_much_better_there_leads_back_exactly(make, dtype):
    run, safe = warm(make, dtype)
    before, rule = run.at(), run.optimizer.state["step_rule"]
    assert not torch.equal(safe, before)
    ceiling = rule["ceiling"]
    assert run.step(100, target=safe)
    assert torch.equal(run.at(), safe)
    assert rule["ceiling"] == max(ceiling / 2, 0.02)
    assert rule["share"] == 0
    report = run.optimizer.report
    assert report.step_size == 0 and report.gain_ratio is None
    # No direction, and a last step that ends at its start.
    assert all(values.keys() == set(Point) for values in run.stored())
    assert torch.equal(run.point(Point.SAFE), safe) and torch.equal(run.point(Point.LAST), safe)
    assert run.optimizer.state["points"] == {"length": 0}
    assert not run.step(100, target=safe)  # nothing is left to learn there
    for number in range(20):
        run.step(number)
    assert not torch.equal(run.at(), safe)


@EACH
def test_a_little_better_is_not_enough(make):
    """The loss must be a third higher than there: a quarter of the higher one."""
    losses = {}
    for share in (0.6, 0.9):
        run, safe = warm(make)
        present = run.at()
        # Between the two points, nearer to the safe one by little or much.
        target = present + share * (safe - present)
        closure = run.closure(100, target=target)
        losses[share] = []
        for place in (present, safe):
            move(run.network, place)
            outcome = closure()
            pair = outcome[0] if isinstance(run.optimizer, MULTI) else outcome
            losses[share].append(float(pair[0].detach()))
        move(run.network, present)
        here, there = losses[share]
        returned = run.step(100, target=target)
        assert returned == (here - there > 0.25 * here)
    assert any(here - there > 0.25 * here for here, there in losses.values())


@EACH
def test_a_point_that_is_better_for_new_samples_becomes_the_safe_one(make):
    run = Run(make)
    assert run.point(Point.SAFE) is run.point(Point.LAST) is None
    for number in range(6):
        before, safe = run.at(), run.point(Point.SAFE)
        closure = run.closure(number)
        here = closure()
        here = float((here[0] if isinstance(run.optimizer, MULTI) else here)[0].detach())
        if safe is not None:
            move(run.network, safe)
            there = closure()
            there = float((there[0] if isinstance(run.optimizer, MULTI) else there)[0].detach())
            move(run.network, before)
        better = safe is None or here <= there
        assert not run.step(number)
        assert torch.equal(run.point(Point.SAFE), before if better else safe)
        assert torch.equal(run.point(Point.LAST), before)


@EACH
def test_after_the_first_steps_it_looks_back_at_times(make):
    run = Run(make)
    for number in range(10):
        run.step(number)
    safe, returned = run.point(Point.SAFE), []
    for number in range(10, 20):
        returned.append(run.step(number, target=safe))
        if returned[-1]:
            break
    assert len(returned) == 5 and returned[-1]


@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError])
@pytest.mark.parametrize("returns", [False, True])
@EACH
def test_an_interruption_at_any_evaluation_changes_nothing(make, returns, error):
    """Also while the loss is evaluated at the safe point."""
    interrupted = 0
    for last in range(1, 12):
        run, safe = warm(make)
        parameters, stored = run.at(), copy.deepcopy(run.stored())
        countdown = iter(range(last, -1, -1))

        def calls(countdown=countdown):
            if next(countdown, 0) == 1:
                raise error("stop")

        try:
            run.step(100, target=safe if returns else None, calls=calls)
        except error:
            interrupted += 1
        else:
            break
        assert torch.equal(run.at(), parameters)
        assert equal(run.stored(), stored)
        # It is repeated as if nothing had been.
        assert run.step(100, target=safe if returns else None) == returns
        assert not returns or torch.equal(run.at(), safe)
    assert interrupted >= (2 if returns else 3)


def train(run, numbers):
    """Some batches lead back."""
    for number in numbers:
        safe = run.point(Point.SAFE)
        target = safe if number in (7, 15) and safe is not None else None
        run.step(number, target=target)


SAVED = [0, 1, 7, 8, 16]  # just before, at and after a return


@functools.cache
def saved_on_the_way(make):
    """A run of twenty steps, and by number of steps: its states, a copy, and a pickle."""
    run, saved = Run(make), {}
    for steps in range(20):
        if steps in SAVED:
            file = io.BytesIO()
            torch.save([run.network.state_dict(), run.optimizer.state_dict()], file)
            saved[steps] = file.getvalue(), run.copy(), pickle.dumps((run.network, run.optimizer))
        train(run, [steps])
    return run, saved


@pytest.mark.parametrize("steps", SAVED)
@EACH
def test_a_run_resumes_to_the_last_bit_from_any_step(make, steps):
    run, saved = saved_on_the_way(make)
    states, copied, pickled = saved[steps]
    loaded, unpickled = Run(make), Run(make)
    weights, state = torch.load(io.BytesIO(states), weights_only=True)
    loaded.network.load_state_dict(weights)
    loaded.optimizer.load_state_dict(state)
    unpickled.network, unpickled.optimizer = pickle.loads(pickled)
    for twin in (loaded, copied.copy(), unpickled):
        train(twin, range(steps, 20))
        assert torch.equal(twin.at(), run.at())
        assert equal(twin.stored(), run.stored())
        for name in ("step_rule", "progress", "damping"):
            assert twin.optimizer.state.get(name) == run.optimizer.state.get(name)


def test_points_that_were_given_out_do_not_change():
    run, _ = warm(KINDS["hig"])
    given = dict(run.optimizer.state_dict()["state"][0])
    kept = copy.deepcopy(given)
    for number in range(10, 20):
        run.step(number)
    assert all(torch.equal(given[name], kept[name]) for name in kept)


@pytest.mark.parametrize("point", Point)
def test_points_of_another_network_are_refused(point):
    (run, _), other = warm(KINDS["hig"]), Run(KINDS["hig"])
    state = copy.deepcopy(run.optimizer.state_dict())
    state["state"][2][point.value] = torch.zeros(7, 7)
    before = copy.deepcopy(other.optimizer.state_dict())
    with pytest.raises(ValueError, match="it is that of another network"):
        other.optimizer.load_state_dict(state)
    assert repr(other.optimizer.state_dict()) == repr(before)


@EACH
def test_a_parameter_that_joins_has_no_earlier_values(make):
    """A point that is not known for all of them is not used."""
    run, _ = warm(make)
    # As part of the prediction, so that it belongs to the joint Jacobian.
    scale = nn.Parameter(torch.ones(2, dtype=torch.float64))
    run.optimizer.add_param_group({"params": [scale]})
    run.network = nn.ModuleList([run.network])
    body = run.network[0]
    run.network.forward = lambda x: body(x) * scale
    assert not run.step(100)
    for number in range(4):
        run.step(number)
    assert run.optimizer.state[scale].keys() >= {"last_point", "safe_point"}


@EACH
def test_what_thaws_has_no_earlier_values(make):
    """Points of other steps than those of the rest would be one that never was."""
    run, _ = warm(make)
    frozen = list(run.network[0].parameters())
    for parameter in frozen:
        parameter.requires_grad_(False)
    for number in range(3):
        run.step(number)
    assert not any({"last_point", "safe_point"} & run.optimizer.state[p].keys() for p in frozen)
    for parameter in frozen:
        parameter.requires_grad_(True)
    run.step(100)
    for number in range(4):
        before = run.at()
        assert run.step(number) or torch.equal(run.point(Point.LAST), before)


def test_only_a_commit_changes_the_state():
    network, _ = build("mlp")
    parameters = list(network.parameters())
    state = {"points": {}}
    points = EarlierPoints(state, parameters, None)
    assert points.last_step() is None
    values = [parameter.detach().clone() for parameter in parameters]
    points.keep_safe(values)
    points.forget()
    assert state == {"points": {}} and points.values(Point.SAFE) is None
    points.commit(values)
    points = EarlierPoints(state, parameters, None)
    assert points.values(Point.LAST) == points.values(Point.SAFE) == values
    assert state["points"] == {"length": 0}
    points.forget()
    assert points.values(Point.LAST) is points.values(Point.SAFE) is None


@pytest.mark.parametrize("rule", ["fixed", "line_search"])
def test_other_rules_keep_no_points(rule):
    network, inputs = build("mlp")
    optimizer = hig.HIG(network.parameters(), lr=0.1, step_rule=rule)
    for _ in range(3):
        optimizer.step(least_squares(network, inputs))
    assert not any(isinstance(key, torch.Tensor) for key in optimizer.state)
