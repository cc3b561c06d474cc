"""Figure of predicted fields."""

import numpy as np
import pytest

from plots import fields
from plots._files import PlotError, load


def images_of(figure, rows):
    return [axes.images[0] for axes in figure.axes[: 3 * rows]]


def test_truth_prediction_and_difference(full_run):
    file = load(full_run)
    truth = file.results["example"]["truth"][1]
    prediction = file.results["example"]["prediction"][1]
    figure = fields.draw([file], example=1)
    images = images_of(figure, 1)
    for image, field in zip(images, (truth, prediction, prediction - truth), strict=True):
        np.testing.assert_array_equal(image.get_array(), field.T)  # x to the right, y upwards
        assert image.origin == "lower"
    rms = np.sqrt(np.mean((prediction - truth) ** 2))
    titles = [axes.get_title() for axes in figure.axes[:3]]
    assert titles == ["ground truth", "prediction", f"difference, RMS {rms:.2g}"]
    assert figure.axes[0].get_ylabel() == "HIG"
    # Bars are named below: a name above would be that of a panel.
    bars = figure.axes[3:]
    assert [bar.get_xlabel() for bar in bars] == ["solution", "difference"]
    assert not any(bar.get_title() or bar.get_ylabel() for bar in bars)
    figure.draw_without_rendering()
    assert all(bar.get_position().y1 < figure.axes[0].get_position().y0 for bar in bars)


def test_limits_are_symmetric_and_shared(full_run):
    files = [load(full_run), load(full_run)]
    example = files[1].results["example"]
    example["prediction"] = 3 * example["prediction"]
    figure = fields.draw(files)
    images = images_of(figure, 2)
    highest = np.abs(example["prediction"][0]).max()
    largest = np.abs(example["prediction"][0] - example["truth"][0]).max()
    assert {images[i].get_clim() for i in (0, 1, 3, 4)} == {(-highest, highest)}
    assert {images[i].get_clim() for i in (2, 5)} == {(-largest, largest)}
    assert images[0].get_cmap() != images[2].get_cmap()
    assert [figure.axes[i].get_title() for i in (3, 4)] == ["", ""]
    assert figure.axes[5].get_title().startswith("RMS ")


def test_fields_that_no_scale_fits(full_run):
    file = load(full_run)
    example = file.results["example"]
    example["prediction"] = example["truth"].copy()
    images = images_of(fields.draw([file]), 1)
    assert images[2].get_clim() == (-1.0, 1.0)
    example["prediction"][0, 0, 0] = np.nan
    highest = np.abs(example["truth"][0]).max()
    assert images_of(fields.draw([file]), 1)[0].get_clim() == (-highest, highest)


def test_different_quantities_have_no_common_scale(full_run):
    files = [load(full_run), load(full_run)]
    files[1].results["example"]["quantity"] = "source"
    with pytest.raises(PlotError, match=r"solution and source, .*; draw a figure of each"):
        fields.draw(files)
