"""Loss curves: files of several origins, and the median over seeds."""

from pathlib import Path

import numpy as np
import pytest

from plots._curves import curve, median_and_band
from plots._files import PlotError, ResultFile

LOSS = [1.0, 0.1, 0.01, 0.001]


def published(**keys):
    losses = {"train_loss": LOSS, "test_loss": LOSS}
    return ResultFile(Path("adam.pickle"), losses | keys)


@pytest.mark.parametrize(
    ("keys", "time", "epochs"),
    [
        ({"epochs": 3, "epoch_time": [1.0, 2.0, 3.0]}, [0, 1, 3, 6], [0, 1, 2, 3]),
        ({"epochs": 4, "epoch_time": [1.0, 2.0, 3.0, 4.0]}, [1, 3, 6, 10], [1, 2, 3, 4]),
        ({"epochs": range(4), "epoch_time": [0.0, 2.0, 3.0, 4.0]}, [0, 2, 5, 9], range(4)),
        ({"epochs": [0, 2, 4, 6], "epoch_time": [1.0] * 6}, [0, 2, 4, 6], [0, 2, 4, 6]),
        ({"epochs": 3, "epoch_time": 2.0}, [0, 2, 4, 6], range(4)),
        ({"epochs": [0, 2, 6, 8], "epoch_time": 1.0, "simulation_time": 16.0}, [0, 4, 12, 16], 0),
        ({"epochs": 6, "simulation_time": 9.0}, [0, 3, 6, 9], [0, 2, 4, 6]),
        ({"epochs": np.arange(4), "epoch_time": np.float32(2)}, [0, 2, 4, 6], range(4)),
        ({"time": [0, 1, 2, 5.0], "epochs": [0, 1, 2, 2.5]}, [0, 1, 2, 5], [0, 1, 2, 2.5]),
        ({"simulation_time": 9.0}, [0, 3, 6, 9], None),
    ],
)
def test_axes_of_published_and_own_files(keys, time, epochs):
    position, loss = curve(published(**keys), "test", "time")
    np.testing.assert_allclose(position, time)
    np.testing.assert_allclose(loss, LOSS)
    if epochs:
        np.testing.assert_allclose(curve(published(**keys), "train", "epochs")[0], epochs)


def test_what_is_missing_is_named():
    with pytest.raises(PlotError, match=r"no 'epoch_time'.*use --x epochs"):
        curve(published(epochs=3), "test", "time")
    with pytest.raises(PlotError, match=r"no 'epochs'.*--x time"):
        curve(published(time=[0, 1, 2, 3]), "test", "epochs")
    with pytest.raises(PlotError, match=r"'time' in adam\.pickle has 2 entries for 4 losses"):
        curve(published(time=[0, 1]), "test", "time")


def test_points_without_a_logarithm_are_left_out_and_told(capsys):
    file = published(time=[0, 1, 2, 3], test_loss=[1.0, np.nan, 0.0, 0.5])
    position, loss = curve(file, "test", "time")
    assert position.tolist() == [0, 3] and loss.tolist() == [1.0, 0.5]
    assert "2 of 4 test losses" in capsys.readouterr().err
    assert curve(file, "test", "time", log_x=True)[0].tolist() == [3]
    with pytest.raises(PlotError, match="no test loss that a logarithmic axis can show"):
        curve(published(time=[0, 1], test_loss=[np.inf, -1.0]), "test", "time")


def test_median_and_band_on_the_common_range():
    grid, median, low, high = median_and_band(
        [
            (np.array([0.0, 1.0, 2.0]), np.array([1.0, 1e-1, 1e-2])),
            (np.array([0.0, 2.0, 4.0]), np.array([1e1, 1e-1, 1e-3])),
            (np.array([0.5, 3.0]), np.array([1e3, 1e3])),
        ]
    )
    np.testing.assert_allclose(grid, [0.5, 1.0, 2.0])
    np.testing.assert_allclose(low, [10**-0.5, 1e-1, 1e-2])
    np.testing.assert_allclose(median, [10**0.5, 1.0, 1e-1])
    np.testing.assert_allclose(high, [1e3, 1e3, 1e3])


def test_no_common_range():
    one, other = (np.array([0.0, 1.0]), np.ones(2)), (np.array([2.0, 3.0]), np.ones(2))
    assert median_and_band([one, other])[0].size == 0
