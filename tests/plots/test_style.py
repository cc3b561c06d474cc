"""Colours belong to methods, whichever others stand beside them."""

from itertools import combinations

import numpy as np
from matplotlib.colors import to_rgb

from plots import _style


def test_a_method_keeps_its_colour():
    alone = _style.line_styles({("adam", "Adam")})
    among = _style.line_styles({("adam", "Adam"), ("hig", "HIG"), ("kfac", "KFAC")})
    assert alone["adam", "Adam"] == among["adam", "Adam"]


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
