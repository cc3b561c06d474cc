import torch

from experiments._machine import machine


def test_facts_are_plain_and_true():
    facts = machine("cpu")
    assert facts["torch"] == torch.__version__
    assert facts["threads"] == torch.get_num_threads()
    assert all(type(value) in (str, int) for value in facts.values()), facts
    assert facts["processor"]
