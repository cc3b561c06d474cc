"""The nodes of a graph, up to a place where nothing more is looked at."""

import torch

from hig._torch.autograd_graph import leaves, reachable_nodes


def test_all_nodes_and_the_leaves():
    first, second = torch.ones(2, requires_grad=True), torch.ones(2, requires_grad=True)
    hidden = first * second
    result = hidden.exp() + first
    names = sorted(node.name() for node in reachable_nodes(result))
    assert names == [
        "AddBackward0",
        "ExpBackward0",
        "MulBackward0",
        *["torch::autograd::AccumulateGrad"] * 2,
    ]
    assert {id(leaf) for leaf in leaves(reachable_nodes(result))} == {id(first), id(second)}


def test_nothing_behind_the_stop():
    first, second = torch.ones(2, requires_grad=True), torch.ones(2, requires_grad=True)
    hidden = first * 2
    stop = (hidden.grad_fn, hidden.output_nr)
    assert leaves(reachable_nodes(hidden.exp() + second, stop)) == [second]
    assert leaves(reachable_nodes(hidden.exp(), stop)) == []
    assert reachable_nodes(hidden, stop) == set()


def test_one_of_several_outputs_is_the_stop():
    whole = torch.ones(4, requires_grad=True)
    first, second = whole.split(2)
    stop = (first.grad_fn, first.output_nr)
    assert leaves(reachable_nodes(first.exp(), stop)) == []
    assert leaves(reachable_nodes((first * second).sum(), stop)) == [whole]


def test_a_tensor_without_a_graph():
    assert reachable_nodes(torch.ones(2)) == set()
