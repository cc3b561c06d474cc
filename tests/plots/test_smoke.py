"""Figure of controlled smoke."""

import numpy as np

from plots import smoke
from plots._files import load

KEYS = ["start", "uncontrolled", "prediction", "truth"]


def images_of(figure, rows):
    return [axes.images[0] for axes in figure.axes[: 4 * rows]]


def test_start_end_and_target(full_run):
    file = load(full_run)
    figure = smoke.draw([file], example=1)
    for image, key in zip(images_of(figure, 1), KEYS, strict=True):
        # x to the right, y upwards
        np.testing.assert_array_equal(image.get_array(), file.results["example"][key][1].T)
        assert image.origin == "lower"
    titles = [axes.get_title() for axes in figure.axes[:4]]
    assert titles == ["start", "uncontrolled", "controlled", "target"]
    assert figure.axes[0].get_ylabel() == "HIG"


def test_one_scale_for_all_files(full_run):
    files = [load(full_run), load(full_run)]
    files[1].results["example"]["uncontrolled"][0, 0, 0] = 77.0
    figure = smoke.draw(files)
    assert {image.get_clim() for image in images_of(figure, 2)} == {(0.0, 77.0)}
    assert [figure.axes[i].get_title() for i in (4, 7)] == ["", ""]
