import torch

from experiments._methods.regression import Regression


def test_data_are_those_of_their_seed_and_of_equal_size():
    problem = Regression(widths=(3, 7, 2), train_size=11)
    first, again, other = (problem.data(torch.Generator().manual_seed(s)) for s in (0, 0, 1))
    for train, same, different in zip(first, again, other, strict=True):
        assert train["input"].shape == (11, 3)
        assert train["target"].shape == (11, 2)
        assert torch.equal(train["target"], same["target"])
        assert not torch.equal(train["target"], different["target"])
    assert not torch.equal(first[0]["input"], first[1]["input"])


def test_the_target_is_a_function_of_the_input_that_a_network_of_these_widths_can_be():
    problem = Regression(widths=(3, 7, 2), train_size=64)
    train, _ = problem.data(torch.Generator().manual_seed(0))
    network = problem.network().double()
    optimizer = torch.optim.LBFGS(network.parameters(), max_iter=150, line_search_fn="strong_wolfe")

    def closure():
        optimizer.zero_grad()
        loss = problem.loss(problem.predict(network, train), train)
        loss.backward()
        return loss

    before = closure().detach()
    optimizer.step(closure)
    assert closure().detach() < 1e-2 * before


def test_loss_adds_outputs_and_averages_samples():
    problem = Regression()
    batch = {"input": torch.zeros(2, 16), "target": torch.zeros(2, 4)}
    assert float(problem.loss(torch.tensor([[1.0, 2, 0, 0], [0, 0, 0, 3]]), batch)) == 7
