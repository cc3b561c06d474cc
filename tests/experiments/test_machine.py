import sys
from types import SimpleNamespace

import torch

from experiments._machine import machine


def test_facts_are_plain_and_true():
    facts = machine("cpu")
    assert facts["torch"] == torch.__version__
    assert facts["threads"] == torch.get_num_threads()
    assert all(type(value) in (str, int) for value in facts.values()), facts
    assert facts["processor"]


def test_phiflow_where_it_is_used(monkeypatch):
    monkeypatch.setitem(sys.modules, "phi", SimpleNamespace(__version__="3.4.0"))
    assert machine("cpu")["phiflow"] == "3.4.0"
    monkeypatch.delitem(sys.modules, "phi")
    assert "phiflow" not in machine("cpu")
