"""The scripts for the toy of two losses, against the descent as one would first write it."""

import numpy as np
import pytest

from experiments import submit
from problems.multitask import Toy
from problems.multitask.toy import STARTS, STEPS_PER_EPOCH
from tests.problems.multitask.descent import conflict_free, descend, losses_and_gradients, total


@pytest.mark.parametrize(("method", "direction"), [("adam", total), ("config", conflict_free)])
@pytest.mark.parametrize("start", [1, 3, 4])  # at the second the gradients differ by rounding
def test_trajectory(method, direction, start, tmp_path):
    line = ["--epochs=2", "--dtype=float64", "--quiet", "--out", str(tmp_path)]
    results = submit(Toy(start=start), method, line)
    expected = descend(direction, 1e-3, 2 * STEPS_PER_EPOCH, STARTS[start - 1 : start])[:, 0]
    np.testing.assert_allclose(results["test_position"], expected[::STEPS_PER_EPOCH], atol=1e-6)
    losses, _ = losses_and_gradients(results["test_position"])
    np.testing.assert_allclose(results["test_losses"], losses, rtol=1e-12)
    np.testing.assert_allclose(results["test_loss"], losses.sum(1), rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("start", range(1, len(STARTS) + 1))
@pytest.mark.parametrize("method", Toy.settings)
def test_every_method_runs_from_every_start(method, start, tmp_path):
    line = [f"--start={start}", "--epochs=1", "--quiet", "--out", str(tmp_path)]
    results = submit(Toy(), method, line)
    assert results["stopped"] == "epochs"
    assert results["test_position"][0].tolist() == [pytest.approx(x) for x in STARTS[start - 1]]
    assert np.ptp(results["test_position"], axis=0).max() > 0.05
    assert results["sim_par"]["start"] == start
