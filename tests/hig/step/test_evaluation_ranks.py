"""Process ranks agree on the graph of their trials, whichever of them needs one."""

import torch

import hig
from hig._step.evaluation import Graph
from tests.hig import processes
from tests.hig.graph_closures import CLOSURES, mlp, points
from tests.textbook import flat

NOTE = "two evaluations of the closure at the same point differ"


def noted(optimizer):
    return any(NOTE in note for note in optimizer.report.notes)


def on_one_rank(rank):
    """Closures that need a graph, or differ, on one process rank alone."""
    found = {}
    for name in ("plain", "asserts", "loader", "differentiated_by_inputs", "another_term"):
        torch.manual_seed(0)
        network, inputs = mlp(), points(2, 4, 2)[rank]
        other = CLOSURES[name][0]()[1] if name == "loader" else None
        calls = []

        def closure(name=name, network=network, inputs=inputs, other=other, calls=calls):
            calls.append(1)
            x = inputs.clone().requires_grad_(name == "differentiated_by_inputs")
            prediction = network(x)
            if rank == 1:
                if name == "asserts":
                    assert prediction.requires_grad
                if name == "differentiated_by_inputs":
                    (slope,) = torch.autograd.grad(prediction.sum(), x, create_graph=True)
                    prediction = prediction + slope
                if name == "another_term" and not torch.is_grad_enabled():
                    prediction = 2 * prediction
                if name == "loader":
                    prediction = prediction + other()[:4].detach()
            return prediction.square().mean(), prediction

        optimizer = hig.LevenbergMarquardt(network.parameters(), lr=0.5, method="gram", rcond=1e-3)
        for _ in range(5):
            optimizer.step(closure)
        state = optimizer._watch.graph, noted(optimizer), len(calls)
        found[name] = state, flat(network.parameters()).tolist()
    return found


def test_process_ranks_agree(tmp_path):
    first, second = processes.run(on_one_rank, 2, tmp_path)
    assert first == second
    graphs = {name: state[:2] for name, (state, _) in first.items()}
    assert graphs == {
        "plain": (Graph.NONE, False),
        "asserts": (Graph.FULL, False),
        "loader": (Graph.FULL, True),
        "differentiated_by_inputs": (Graph.OF_INPUTS, False),
        "another_term": (Graph.FULL, False),
    }


def started_again(rank):
    """One process rank has another optimizer, with the state of the first, after some steps."""
    torch.manual_seed(0)
    network, inputs = mlp(), points(2, 4, 2)[rank]

    def closure():
        prediction = network(inputs)
        return prediction.square().mean(), prediction

    def make():
        return hig.LevenbergMarquardt(network.parameters(), lr=0.5, method="gram", rcond=1e-3)

    optimizer = make()
    for _ in range(3):
        optimizer.step(closure)
    if rank == 1:
        state, optimizer = optimizer.state_dict(), make()
        optimizer.load_state_dict(state)
    for _ in range(80):
        optimizer.step(closure)
    return optimizer._watch.graph, flat(network.parameters()).tolist()


def test_a_process_rank_that_was_started_again(tmp_path):
    first, second = processes.run(started_again, 2, tmp_path)
    assert first == second
    assert first[0] is Graph.NONE
