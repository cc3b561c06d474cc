"""States of optimisers: refused where they are another's, and shared with nobody."""

import copy
import functools
import io
import pickle

import pytest
import torch

import hig
from tests.hig.networks import build, least_squares

MAKE = {
    "hig": lambda p: hig.HIG(p, momentum=0.5, step_rule="fixed"),
    "projected": lambda p: hig.HIG(p, momentum=0.5, momentum_kind="projected", step_rule="fixed"),
    "trust": lambda p: hig.HIG(p, momentum=0.5, step_rule="trust"),
    "line_search": lambda p: hig.HIG(p, momentum=0.5, step_rule="line_search"),
    "gauss_newton": lambda p: hig.GaussNewton(p, momentum=0.5, step_rule="fixed"),
    "levenberg": lambda p: hig.LevenbergMarquardt(p, momentum=0.5, step_rule="fixed"),
    "levenberg_trust": lambda p: hig.LevenbergMarquardt(p, step_rule="trust"),
    "multi": hig.MultiHIG,
    "kronecker": hig.KroneckerHIG,
}
OTHERS = {"adam": torch.optim.Adam, "sgd": lambda p: torch.optim.SGD(p, momentum=0.5)}


def stepped(make, steps=2):
    network, inputs = build("mlp")
    optimizer, closure = make(network.parameters()), least_squares(network, inputs)
    for _ in range(steps):
        if isinstance(optimizer, hig.MultiHIG):
            optimizer.step(lambda: [closure()])
        elif type(optimizer).__module__.startswith("hig"):
            optimizer.step(closure)
        else:
            optimizer.zero_grad()
            closure()[0].backward()
            optimizer.step()
    return optimizer


@functools.cache
def _stepped_once(name, steps):
    return stepped((MAKE | OTHERS)[name], steps)


def stepped_copy(name, steps=2):
    """Return a copy of one that has taken the steps: for tests that ask for many pairs."""
    return copy.deepcopy(_stepped_once(name, steps))


def tensors_in(value):
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, dict):
        for item in value.values():
            yield from tensors_in(item)


@pytest.mark.parametrize("name", MAKE)
@pytest.mark.parametrize("other", MAKE | OTHERS)
@pytest.mark.parametrize("steps", [0, 2])
def test_the_state_of_another_is_refused(name, other, steps):
    if name == other:
        return
    optimizer = stepped_copy(name)
    state = stepped_copy(other, steps).state_dict()
    before = copy.deepcopy(optimizer.state_dict())
    with pytest.raises(ValueError, match="another"):
        optimizer.load_state_dict(state)
    assert repr(optimizer.state_dict()) == repr(before)


@pytest.mark.parametrize("make", MAKE.values(), ids=MAKE)
def test_what_is_loaded_is_a_copy(make):
    first, second = stepped(make), stepped(make, 0)
    state = first.state_dict()
    second.load_state_dict(state)
    assert repr(second.state_dict()) == repr(state)
    shared = {t.data_ptr() for t in tensors_in(state["state"])}
    assert not shared & {t.data_ptr() for t in tensors_in(second.state_dict()["state"])}
    before = copy.deepcopy(state)
    network, inputs = build("mlp")
    closure = least_squares(network, inputs)
    third = make(network.parameters())
    third.load_state_dict(state)
    third.step((lambda: [closure()]) if isinstance(third, hig.MultiHIG) else closure)
    assert repr(first.state_dict()) == repr(before)
    assert repr(state) == repr(before)


def test_states_of_before_have_no_name_in_them():
    state = copy.deepcopy(stepped(MAKE["trust"]).state_dict())
    del state["state"]["optimizer"]
    loaded = stepped(MAKE["trust"], 0)
    loaded.load_state_dict(state)
    assert loaded.state_dict()["state"]["step_rule"] == state["state"]["step_rule"]
    for name in ("hig", "line_search", "levenberg", "levenberg_trust", "kronecker"):
        with pytest.raises(ValueError, match="another"):
            stepped(MAKE[name]).load_state_dict(state)
    state = copy.deepcopy(stepped(MAKE["levenberg"]).state_dict())
    del state["state"]["optimizer"]
    with pytest.raises(ValueError, match="'damping', which this optimizer does not have"):
        stepped(MAKE["hig"]).load_state_dict(state)


class Mine(hig.HIG):
    """A user's own."""


def test_a_derived_class_loads_what_its_base_saved():
    state = stepped(MAKE["hig"]).state_dict()
    loaded = stepped(lambda p: Mine(p, momentum=0.5, step_rule="fixed"), 0)
    loaded.load_state_dict(state)
    assert repr(loaded.state_dict()) == repr(state)


def test_a_state_of_other_parameters():
    state = stepped(MAKE["hig"]).state_dict()
    shapes = [tuple(state["state"][i]["direction"].shape) for i in range(4)]
    others = [torch.zeros(*shape, 2, requires_grad=True) for shape in shapes]
    with pytest.raises(ValueError, match="it is that of another network"):
        hig.HIG(others, momentum=0.5, step_rule="fixed").load_state_dict(state)
    fewer = list(build("mlp")[0].parameters())[:2]
    with pytest.raises(ValueError, match="group"):  # in the words of torch
        hig.HIG(fewer, momentum=0.5, step_rule="fixed").load_state_dict(state)


@pytest.mark.parametrize("state", [{}, None, [], {"state": {}}])
def test_what_is_no_state(state):
    with pytest.raises(ValueError, match=r"load the state_dict\(\) of HIG"):
        stepped(MAKE["hig"], 0).load_state_dict(state)


@pytest.mark.parametrize("damping", [float("nan"), -1.0])
def test_a_damping_out_of_range(damping):
    optimizer = stepped(MAKE["levenberg"])
    state = copy.deepcopy(optimizer.state_dict())
    state["state"]["damping"]["value"] = damping
    before = optimizer.filter
    with pytest.raises(ValueError, match="damping must be"):
        optimizer.load_state_dict(state)
    assert optimizer.filter is before


RESUMED = MAKE | {
    f"{kind.__name__} {rule}": lambda p, kind=kind, rule=rule: kind(p, step_rule=rule)
    for kind in (hig.HIG, hig.GaussNewton, hig.LevenbergMarquardt, hig.MultiHIG)
    for rule in ("fixed", "trust", "line_search")
}
RESUMED |= {
    f"{kind.__name__} {which}, trust": lambda p, kind=kind, which=which: kind(
        p, step_rule="trust", momentum=0.5, momentum_kind=which
    )
    for kind in (hig.HIG, hig.LevenbergMarquardt)
    for which in ("plain", "projected")
}


def train(network, optimizer, steps, dtype):
    for number in range(steps):
        generator = torch.Generator().manual_seed(number)
        closure = least_squares(network, torch.randn(5, 4, generator=generator, dtype=dtype))
        optimizer.step(several(closure) if isinstance(optimizer, hig.MultiHIG) else closure)


def several(closure):
    return lambda: [closure()]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("make", RESUMED.values(), ids=RESUMED)
def test_saved_copied_and_pickled_it_continues_to_the_last_bit(make, dtype):
    """Saved without code that loading would run."""
    network, _ = build("mlp", dtype)
    optimizer = make(network.parameters())
    train(network, optimizer, 4, dtype)
    file = io.BytesIO()
    torch.save([network.state_dict(), optimizer.state_dict()], file)
    file.seek(0)
    weights, memory = torch.load(file, weights_only=True)
    again, _ = build("mlp", dtype)
    again.load_state_dict(weights)
    loaded = make(again.parameters())
    loaded.load_state_dict(memory)
    assert repr(loaded.state_dict()) == repr(optimizer.state_dict())
    pair = network, optimizer
    twins = [(again, loaded), copy.deepcopy(pair), pickle.loads(pickle.dumps(pair))]
    train(network, optimizer, 5, dtype)
    for other, twin in twins:
        train(other, twin, 5, dtype)
        assert repr(twin.state_dict()) == repr(optimizer.state_dict())
        for found, expected in zip(other.parameters(), network.parameters(), strict=True):
            assert torch.equal(found, expected)
        assert twin.state is not optimizer.state


@pytest.mark.parametrize("make", MAKE.values(), ids=MAKE)
def test_pickles_are_small(make):
    """A few numbers next to the parameters and their momentum; no matrix."""
    rows, columns = 600, 40
    torch.manual_seed(0)
    network = torch.nn.Sequential(torch.nn.Linear(8, 4), torch.nn.Tanh(), torch.nn.Linear(4, 2))
    closure = least_squares(network, torch.randn(rows // 2, 8))
    optimizer = make(network.parameters())
    if isinstance(optimizer, hig.KroneckerHIG):
        optimizer.step(closure)
    else:
        optimizer.step((lambda: [closure()]) if isinstance(optimizer, hig.MultiHIG) else closure)
    for thing in (optimizer, optimizer.report):
        assert len(pickle.dumps(thing)) < 8 * (rows + 20 * columns) + 10_000
    again = pickle.loads(pickle.dumps(optimizer))
    assert repr(again.state_dict()) == repr(optimizer.state_dict())
