"""The report of a Kronecker step in words."""

import torch

from hig import KroneckerReport
from hig._torch.ranks import Communication


def report(graft, probed=False, refreshed=False, **others):
    seconds = {"forward": 0.002}
    loss = torch.tensor(0.5)
    return str(KroneckerReport(loss, 2, 1, 1.5, graft, probed, refreshed, seconds, **others))


def test_text():
    assert report([0.25, 0.25]) == (
        "loss 0.5; 2 layers, 1 other parameters; step norm 1.5 times the learning rate; "
        "grafted by 0.25; ms: forward 2.0"
    )
    assert "grafted by 0.25 to 3;" in report([3.0, 0.25])
    assert "grafted" not in report([])
    assert "factors updated;" in report([1.0], probed=True)
    assert "factors updated, powers refreshed;" in report([1.0], probed=True, refreshed=True)
    exchanged = report([1.0], communication=Communication(2, 7, 1000, 0.004))
    assert exchanged.endswith("ms: forward 2.0; 2 processes: 7 exchanges, 0.001 MB, 4.0 ms")


def test_what_is_left_to_adam_is_grouped_by_reason():
    names = {f"a{i}": "one reason" for i in range(8)} | {"b": "another"}
    whole = KroneckerReport(
        torch.tensor(0.5), 1, 9, 1.5, [1.0], True, True, left_to_adam=names, remarks=["a remark"]
    )
    assert whole.notes == [
        "a0, a1, a2, a3, a4, a5 and 2 more left to Adam: one reason",
        "b left to Adam: another",
        "a remark",
    ]
    assert str(whole).endswith("; ".join(whole.notes))


def test_without_layers_the_step_is_adams():
    assert KroneckerReport(torch.tensor(0.5), 0, 0, 1.5, [], True, False).notes == [
        "no layer is preconditioned, the whole step is Adam's"
    ]
