"""What was not exact is tried seldom, in other graphs at once."""

import copy
import pickle
from itertools import pairwise

from hig._jacobian.exactness import FIRST, LAST, MOST, UNITS, ExactnessMemory


def tries(memory, builds, key=("layer",), kind="graph"):
    """The builds in which a layer that is never exact is tried."""
    found = []
    for _ in range(builds):
        memory.builds += 1
        if not memory.skips(key, kind):
            found.append(memory.builds)
            memory.failed(key, kind)
    return found


def test_tries_are_ever_further_apart():
    found = tries(ExactnessMemory(), 20000)
    distances = [b - a for a, b in pairwise(found)]
    assert distances[:3] == [FIRST, 2 * FIRST, 4 * FIRST]
    assert max(distances) == distances[-1] == LAST


def test_another_layer_and_another_kind_of_graph_are_tried_at_once():
    memory = ExactnessMemory()
    tries(memory, 1)
    assert memory.skips(("layer",), "graph")
    assert not memory.skips(("another",), "graph")
    assert not memory.skips(("layer",), "another")


def test_what_is_exact_again_is_forgotten():
    memory = ExactnessMemory()
    tries(memory, 30)
    memory.held(("layer",), 1.0, lambda: "graph")
    assert not memory.failures
    assert tries(memory, 2) == [31]


def test_rounding_beyond_the_usual_is_allowed_for_a_time():
    memory, key = ExactnessMemory(builds=1), ("layer",)
    memory.held(key, UNITS / 2, lambda: None)
    assert memory.allowed(key) == UNITS
    memory.held(key, 10 * UNITS, lambda: None)
    assert memory.allowed(key) == 20 * UNITS
    memory.builds += FIRST - 1
    assert memory.allowed(key) == 20 * UNITS
    memory.builds += 1
    assert memory.allowed(key) == UNITS
    memory.held(key, 5 * UNITS, lambda: None)  # the larger one stays, for twice as long
    memory.builds += 2 * FIRST - 1
    assert memory.allowed(key) == 20 * UNITS


def test_graphs_that_change_in_every_step_do_not_fill_the_memory():
    memory = ExactnessMemory()
    for kind in range(MOST + 10):
        memory.failed(("layer",), kind)
        memory.held((kind,), 2 * UNITS, lambda: None)
    assert len(memory.failures) == len(memory.rounding) == MOST
    assert memory.skips(("layer",), MOST + 9)


def test_copies_remember():
    memory = ExactnessMemory()
    tries(memory, 3)
    for twin in (copy.deepcopy(memory), pickle.loads(pickle.dumps(memory))):
        assert twin == memory
        assert twin.skips(("layer",), "graph")
