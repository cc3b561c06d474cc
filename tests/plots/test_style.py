"""Colours belong to methods, whichever others a figure."""

from itertools import combinations

import numpy as np
import pytest
from matplotlib.colors import to_rgb

from experiments._methods import METHODS
from plots import _style


def test_a_method_keeps_its_colour():
    alone = _style.line_styles({("adam", "Adam")})
    among = _style.line_styles({("adam", "Adam"), ("hig", "HIG"), ("kfac", "KFAC")})
    assert alone["adam", "Adam"] == among["adam", "Adam"]


def test_every_method_has_a_look_of_its_own():
    names = list(METHODS)
    assert all(_style.is_known(name) for name in names)
    looks = _style.line_styles({(name, name) for name in names})
    for one, two in combinations(names, 2):
        first, second = looks[one, one], looks[two, two]
        if first["linestyle"] == second["linestyle"]:
            colours = [np.array(to_rgb(style["color"])) for style in (first, second)]
            assert np.abs(colours[0] - colours[1]).max() > 0.2, (one, two)
    assert [name for name, _ in looks][:4] == ["hig", "khig", "multihig", "gn"]


def test_variants_begin_with_the_dashes_of_the_method():
    styles = _style.line_styles({("mconfig", label) for label in ("M-ConFIG", "M-ConFIG (lr 1)")})
    alone = _style.line_styles({("mconfig", "M-ConFIG")})
    first, second = styles.values()
    assert first == alone["mconfig", "M-ConFIG"]
    assert first["color"] == second["color"] and first["linestyle"] != second["linestyle"]


def test_plain_ticks_are_for_less_than_a_decade():
    _, grid = _style.panels(1, 2)
    for axes, high in zip(grid[0], (5.0, 50.0), strict=True):
        axes.plot([1, 2], [1.0, high])
        axes.set_yscale("log")
        _style.plain_ticks(axes.xaxis)
        _style.plain_ticks(axes.yaxis)
    kinds = [type(axes.yaxis.get_major_formatter()).__name__ for axes in grid[0]]
    assert kinds == ["ScalarFormatter", "LogFormatterSciNotation"]


@pytest.mark.parametrize("high", [2.0, 8.0, 40.0, 500.0, 1e5, 1e9])
def test_few_ticks_on_every_range(high):
    _, grid = _style.panels(1, 1)
    axes = grid[0, 0]
    axes.plot([1, high], [1, 1])
    axes.set_xscale("log")
    _style.few_ticks(axes.xaxis)
    low, top = axes.get_xlim()
    ticks = [tick for tick in axes.get_xticks() if low <= tick <= top]
    assert 2 <= len(ticks) <= 10
    assert len(axes.get_xticks(minor=True)) == 0


def test_methods_differ_in_colour_and_variants_in_dashes():
    names = ["hig", "adam", "gn", "lm", "sgd", "rmsprop", "adagrad", "adadelta", "kfac", "other"]
    styles = _style.line_styles({(name, name) for name in names})
    colours = [np.array(to_rgb(styles[name, name]["color"])) for name in names]
    assert all(np.abs(one - two).max() > 0.1 for one, two in combinations(colours, 2))
    variants = _style.line_styles({("hig", f"HIG ({i})") for i in range(6)})
    looks = {(to_rgb(style["color"]), style["linestyle"]) for style in variants.values()}
    assert len(looks) == 6


def test_synonyms():
    assert _style.method_name("Gauss–Newton") == _style.method_name("GN") == "gn"
    assert _style.method_name("Levenberg_Marquardt") == "lm"


def test_long_labels_are_wrapped_after_the_name():
    label = "Levenberg–Marquardt (batch 700, residual, float64)"
    assert _style.wrapped("Adam (lr 0.01)", 20) == "Adam (lr 0.01)"
    lines = _style.wrapped(label, 24).splitlines()
    assert lines[0] == "Levenberg–Marquardt"
    assert " ".join(lines) == label
    assert max(map(len, lines)) <= 24
