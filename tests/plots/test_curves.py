"""Loss curves: files of several origins, and the median over seeds."""

from pathlib import Path

import numpy as np
import pytest

from plots._curves import components, curve, median_and_band, positions, quantity_key
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
    with pytest.raises(PlotError, match=r"'time' in adam\.pickle has 2 entries for 4 evaluations"):
        curve(published(time=[0, 1]), "test", "time")


def test_points_without_a_logarithm_are_left_out_and_reported(capsys):
    file = published(time=[0, 1, 2, 3], test_loss=[1.0, np.nan, 0.0, 0.5])
    position, loss = curve(file, "test", "time")
    assert position.tolist() == [0, 3] and loss.tolist() == [1.0, 0.5]
    assert "2 of 4 values of 'test_loss'" in capsys.readouterr().err
    assert curve(file, "test", "time", log_x=True)[0].tolist() == [3]
    with pytest.raises(PlotError, match="no value of 'test_loss' that the axes can show"):
        curve(published(time=[0, 1], test_loss=[np.inf, -1.0]), "test", "time")


def test_values_of_either_sign(capsys):
    file = published(time=[0, 1, 2, 3], test_loss=[1.0, 0.0, -1.0, np.nan])
    assert curve(file, "test", "time", log_y=False)[1].tolist() == [1.0, 0.0, -1.0]
    assert "1 of 4 values" in (text := capsys.readouterr().err) and "--linear" not in text
    assert curve(file, "test", "time")[1].tolist() == [1.0]
    assert "left out; --linear shows those of either sign" in capsys.readouterr().err
    with pytest.raises(PlotError, match=r"can show.*; --linear shows"):
        curve(published(time=[0, 1], test_loss=[-2.0, -1.0]), "test", "time")


def test_names_of_quantities():
    names = ["test", "train", "l1_distance", "test_l1_distance", "train_l1_distance"]
    assert [quantity_key(name) for name in names] == [
        "test_loss", "train_loss", "test_l1_distance", "test_l1_distance", "train_l1_distance",
    ]  # fmt: skip
    assert quantity_key("smallest_cosine") == "smallest_cosine"


def test_cosines_have_either_sign_and_none_before_the_first_step(capsys):
    file = published(time=[0, 1, 2, 3], smallest_cosine=[np.nan, 0.5, -0.25, 0.0])
    position, cosine = curve(file, "smallest_cosine", "time")
    assert position.tolist() == [1, 2, 3] and cosine.tolist() == [0.5, -0.25, 0.0]
    assert capsys.readouterr().err == ""
    file = published(time=[0, 1, 2, 3], smallest_cosine=[np.nan, 0.5, np.nan, 0.0])
    assert curve(file, "smallest_cosine", "time")[1].tolist() == [0.5, 0.0]
    assert "1 of 4 values of 'smallest_cosine'" in capsys.readouterr().err
    with pytest.raises(PlotError, match="quantity can be train, test, smallest_cosine here"):
        curve(file, "cosine", "time")


def test_any_recorded_quantity():
    file = published(time=[0, 1, 2, 3], test_error=[4.0, 3.0, 2.0, 1.0], step_size=[1.0, 2.0])
    assert curve(file, "error", "time")[1].tolist() == [4.0, 3.0, 2.0, 1.0]
    known = "quantity can be train, test, error, step_size here"
    with pytest.raises(PlotError, match=rf"no 'test_eror'.*{known}"):
        curve(file, "eror", "time")


def labels(file, *arguments):
    return [part.label for part in components(file, *arguments)]


def test_components_of_a_quantity():
    file = published(test_mse=np.arange(8.0).reshape(4, 2), test_one=np.arange(4.0).reshape(4, 1))
    assert components(file, "test") == [file]
    assert labels(file, "mse") == ["adam, 1", "adam, 2"]
    assert components(file, "mse")[1].results["test_mse"].tolist() == [1, 3, 5, 7]
    (plain,) = components(file, "one")
    assert plain.label == "adam" and plain.results["test_one"].tolist() == [0, 1, 2, 3]
    assert plain.method == "adam"
    named = published(test_mse=np.ones((4, 2)), example={"unknowns": ["u", "p"]})
    assert labels(named, "mse") == ["adam, u", "adam, p"]
    assert labels(named, "mse", ["p"]) == ["adam, p"]
    with pytest.raises(PlotError, match="no component q; --component can be u, p here"):
        components(named, "mse", ["q"])


def test_more_components_than_a_figure_distinguishes():
    file = published(test_f1=np.ones((4, 40)), example={"tasks": [f"task {i}" for i in range(40)]})
    with pytest.raises(PlotError, match=r"40 components, more than the 12 .* can be task 0, task"):
        components(file, "f1")
    assert len(components(file, "f1", ["task 3", "task 9"])) == 2


def test_quantities_of_every_step():
    file = published(
        epochs=[0.0, 1.0, 2.0, 3.0], step_size=[1.0, 0.5, 0.0, 2.0, 2.0, 2.0],
        step_time=[1.0, 2.0, 3.0, 4.0, 5.0, 6.0], pretraining_time=10.0,
    )  # fmt: skip
    assert curve(file, "step_size", "time")[0].tolist() == [11, 12, 14, 15, 16]
    assert curve(file, "step_size", "epochs")[0].tolist() == [0.5, 1.0, 2.0, 2.5, 3.0]
    short = published(step_size=[1.0, 2.0], step_time=[1.0])
    with pytest.raises(PlotError, match="has 1 entries for 2 steps"):
        curve(short, "step_size", "time")


def test_steps_of_evaluations_and_of_what_is_kept_of_the_steps():
    settings = {"points_interior": 10, "batch_size": 4}
    file = published(epochs=[0.0, 1.0, 4 / 3, 2.0], sim_par=settings)
    assert positions(file, "steps", 4).tolist() == [0, 3, 4, 6]
    some = {"step_size": [1.0, 0.5], "step_time": [2.0, 4.0], "step": [2, 4]}
    file = published(epochs=[0.0, 2.0], sim_par=settings, **some)
    assert curve(file, "step_size", "steps")[0].tolist() == [2, 4]
    assert curve(file, "step_size", "epochs")[0].tolist() == [1, 2]
    for settings in ({}, {"batch_size": 4}, {"train_size": 4}):
        with pytest.raises(PlotError, match="'sim_par' must have 'batch_size' and one of train_si"):
            positions(published(epochs=[0.0, 1.0], sim_par=settings), "steps", 2)


def test_a_run_from_saved_weights_starts_at_their_time():
    file = published(time=[0, 1, 2, 3], epochs=[0, 2, 4, 6], pretraining_time=10.0)
    assert positions(file, "time", 4).tolist() == [10, 11, 12, 13]
    assert positions(file, "epochs", 4).tolist() == [0, 2, 4, 6]
    # Its start is a point like any other there, on a logarithmic axis too.
    assert curve(file, "test", "time", log_x=True)[0].tolist() == [10, 11, 12, 13]
    assert curve(file, "test", "epochs", log_x=True)[0].tolist() == [2, 4, 6]
    totals = published(epochs=3, epoch_time=2.0, pretraining_time=1.0)
    assert positions(totals, "time", 4).tolist() == [1, 3, 5, 7]
    fresh = published(time=[0, 1, 2, 3], pretraining_time=None)
    assert positions(fresh, "time", 4).tolist() == [0, 1, 2, 3]


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


def test_median_and_band_of_either_sign():
    curves = [(np.array([0.0, 2.0]), np.array([-1.0, 1.0])), (np.array([1.0]), np.array([0.5]))]
    grid, median, low, high = median_and_band(curves, log_y=False)
    assert [part.tolist() for part in (grid, median, low, high)] == [[1.0], [0.25], [0.0], [0.5]]


def test_no_common_range():
    one, other = (np.array([0.0, 1.0]), np.ones(2)), (np.array([2.0, 3.0]), np.ones(2))
    assert median_and_band([one, other])[0].size == 0
