"""What a Kronecker step says about itself."""

import torch

from hig import KroneckerReport


def report(graft, probed=False, refreshed=False):
    seconds = {"forward": 0.002}
    return str(KroneckerReport(torch.tensor(0.5), 2, 1, 1.5, graft, probed, refreshed, seconds))


def test_text():
    assert report([0.25, 0.25]) == (
        "loss 0.5; 2 layers, 1 other parameters; step norm 1.5 times the learning rate; "
        "grafted by 0.25; ms: forward 2.0"
    )
    assert "grafted by 0.25 to 3;" in report([3.0, 0.25])
    assert "grafted" not in report([])
    assert "factors updated;" in report([1.0], probed=True)
    assert "factors updated, powers refreshed;" in report([1.0], probed=True, refreshed=True)
