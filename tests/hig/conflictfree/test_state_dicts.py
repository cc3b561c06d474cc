"""States of objects whose parts may have a state."""

import pytest

from hig.conflictfree import LatestLossRecorder, ProjectionLength
from hig.conflictfree._state_dicts import load_states, states


def test_parts_without_a_state_have_no_entry():
    recorder = LatestLossRecorder(2)
    recorder.record_loss(1, 3.0)
    saved = states(recorder=recorder, model=ProjectionLength(), none=None)
    assert saved == {"recorder": {"current_losses": [0.0, 3.0]}}
    other = LatestLossRecorder(2)
    load_states({"t": 1} | saved, recorder=other, model=ProjectionLength(), none=None)
    assert other.current_losses == [0.0, 3.0]


@pytest.mark.parametrize(
    ("names", "part", "match"),
    [
        (["recorder"], None, r"has parts \['recorder'\], this object \[\]; construct it as"),
        ([], LatestLossRecorder(2), r"has parts \[\], this object \['recorder'\]"),
    ],
)
def test_missing_states_and_parts_are_refused(names, part, match):
    state = {name: {"current_losses": [1.0, 2.0]} for name in names}
    with pytest.raises(ValueError, match=match):
        load_states(state, recorder=part)
    assert part is None or part.current_losses == [0.0, 0.0]
