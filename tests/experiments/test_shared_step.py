from experiments import shared_step
from tests.experiments.runs import TINY


def test_one_process_shares_with_nobody():
    said = []
    found = shared_step.measure(TINY, batch_size=8, engine="auto", rounds=1, say=said.append)
    assert found["alone"] > 0 and found["shared"] > 0
    assert found["exchanges"] == found["received"] == found["waiting"] == 0
    assert len(said) == 1 and "32 x 1108, engine layerwise, 1 processes" in said[0]
