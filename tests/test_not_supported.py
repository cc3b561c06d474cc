"""Rows of docs/not_supported.md: each case raises the error, with the text, of its row."""

import pickle
import re
import warnings
from pathlib import Path

import pytest
import torch
from torch.utils.checkpoint import checkpoint

import hig
from hig.conflictfree import PseudoMomentumOperator
from tests.hig.networks import least_squares

PAGE = Path(__file__).parent.parent / "docs" / "not_supported.md"
ROWS = re.findall(r"^\| .*? \| `(\w+)`: (.*?) \| ", PAGE.read_text(encoding="utf-8"), re.M)


class Case:
    """A small network, a step that is refused, and whether its parameters have stayed."""

    def __init__(self, folder):
        torch.manual_seed(0)
        layers = torch.nn.Linear(3, 4), torch.nn.Tanh(), torch.nn.Linear(4, 2)
        self.network, self.x = torch.nn.Sequential(*layers), torch.randn(6, 3)
        self.folder = folder

    def step(self, closure=None, predict=None, optimizer=hig.HIG, **options):
        """A step by what `closure` returns, or by the mean square of what `predict` gives."""

        def squares():
            prediction = predict()
            return prediction.abs().square().mean(), prediction

        optimizer(self.network.parameters(), **options).step(closure or squares)

    def complex_prediction(self):
        self.step(predict=lambda: self.network(self.x) * (1 + 1j))

    def penalty(self):
        def closure():
            prediction = self.network(self.x)
            return prediction.square().mean() + self.network[0].weight.square().sum(), prediction

        self.step(closure)

    def options_of_the_step(self):
        for option in ({"weight_decay": 0.1}, {"max_norm": 1.0}):
            with pytest.raises(TypeError, match=next(iter(option))):
                hig.HIG(self.network.parameters(), **option)
        hig.HIG(self.network.parameters(), momentum=0.9)  # is one
        hig.HIG(self.network.parameters(), weight_decay=0.1)

    def group_settings(self):
        hig.HIG([{"params": self.network.parameters(), "rcond": 1e-3}])

    def learning_rates(self):
        first, _, last = self.network
        groups = [{"params": first.parameters()}, {"params": last.parameters(), "lr": 0.1}]
        hig.HIG(groups, step_rule="trust").step(lambda: None)

    def copy(self):
        def closure():
            prediction = self.network(self.x)
            return prediction.square().mean(), prediction.clone()

        self.step(closure)

    def several_losses(self):
        def closure():
            prediction = self.network(self.x)
            return [(prediction.square().mean(), prediction), (prediction.sum(), prediction)]

        self.step(closure)

    def no_closure(self):
        hig.HIG(self.network.parameters()).step(None)

    def backward(self):
        def closure():
            prediction = self.network(self.x)
            loss = prediction.square().mean()
            loss.backward()
            return loss, prediction

        self.step(closure)

    def loss_alone(self):
        self.step(lambda: self.network(self.x).square().mean())

    def from_outside(self):
        prediction = self.network(self.x)
        self.step(lambda: (prediction.square().mean(), prediction))

    def state_of_another(self):
        state = hig.GaussNewton(self.network.parameters()).state_dict()
        hig.HIG(self.network.parameters()).load_state_dict(state)

    def lazy(self):
        with warnings.catch_warnings():  # some versions of torch call them new
            warnings.simplefilter("ignore")
            lazy = torch.nn.LazyLinear(2)
        parameters = [*self.network.parameters(), *lazy.parameters()]
        closure = least_squares(self.network, self.x)
        hig.HIG(parameters).step(closure)

    def numpy(self):
        self.step(predict=lambda: torch.from_numpy(self.network(self.x).detach().numpy()))

    def reentrant(self):
        x = self.x.requires_grad_()
        self.step(
            predict=lambda: self.network[2](checkpoint(self.network[:2], x, use_reentrant=True))
        )

    def coupled(self):
        self.step(
            predict=lambda: self.network(self.x - self.network(self.x).mean()), engine="layerwise"
        )

    def lanczos(self):
        def predict():
            tokens = self.network(self.x).view(6, 1, 2, 1)
            return torch.nn.functional.scaled_dot_product_attention(tokens, tokens, tokens)

        self.step(predict=predict, engine="rows", method="lanczos")

    def loss_without_curvature(self):
        def closure():
            prediction = self.network(self.x)
            classes = torch.tensor([0, 1, 0, 1, 0, 1])
            return torch.nn.functional.multi_margin_loss(prediction, classes), prediction

        self.step(closure, step_rule="trust")

    def memory(self):
        hig.MultiHIG(self.network.parameters(), operator=PseudoMomentumOperator(2))

    def roll(self, step, controls, **options):
        state = torch.zeros(6, 2)
        hig.rollout(step, state, controls.requires_grad_(), **options).abs().sum().backward()

    def in_place(self):
        self.roll(lambda state, control: state.add_(control), torch.zeros(6, 4, 2))

    def counter(self):
        calls = []

        def step(state, control):
            calls.append(1)
            return state + control * len(calls)

        self.roll(step, torch.ones(6, 4, 2))

    def complex_controls(self):
        controls = torch.zeros(6, 4, 2, dtype=torch.complex64)
        self.roll(lambda state, control: state + control, controls, method="jacobians")

    def tensor_in_results(self):
        hig.save_results(self.folder / "results.pickle", {"loss": torch.zeros(2)})

    def function_in_results(self):
        path = self.folder / "results.pickle"
        path.write_bytes(pickle.dumps({"loss": print}))
        hig.load_results(path)


CASES = {
    "prediction must be real floating point": Case.complex_prediction,
    "other than through the prediction": Case.penalty,
    "unexpected keyword argument": Case.options_of_the_step,
    "parameter groups take": Case.group_settings,
    "all parameter groups must have one lr": Case.learning_rates,
    "the loss does not depend on the prediction": Case.copy,
    "the closure must return (loss, prediction), got 2 pairs": Case.several_losses,
    "closure must be a function": Case.no_closure,
    "the graph of the prediction has been freed": Case.backward,
    "the closure must return (loss, prediction), got Tensor": Case.loss_alone,
    "computed before it was called": Case.from_outside,
    "the state is that of another optimizer": Case.state_of_another,
    "belongs to a lazy module": Case.lazy,
    "the prediction carries no gradient graph": Case.numpy,
    "a reentrant checkpoint hides": Case.reentrant,
    "the layerwise engine cannot give the exact Jacobian": Case.coupled,
    "differentiates the derivative of the simulator": Case.lanczos,
    "the step is measured by the second derivative": Case.loss_without_curvature,
    "must be one without a memory": Case.memory,
    "the step changes its state or control in place": Case.in_place,
    "the step gave another result when it was run again": Case.counter,
    "complex controls may enter with their conjugates": Case.complex_controls,
    "results hold plain Python and numpy values only": Case.tensor_in_results,
    "nothing of it was run": Case.function_in_results,
}


def test_every_row_has_a_case():
    assert {text for _, text in ROWS} == set(CASES)


@pytest.mark.parametrize(("kind", "text"), ROWS)
def test_it_is_refused_in_these_words(kind, text, tmp_path):
    case = Case(tmp_path)
    before = [parameter.clone() for parameter in case.network.parameters()]
    with pytest.raises(Exception, match=re.escape(text)) as raised:
        CASES[text](case)
    assert raised.type.__name__ == kind
    for parameter, start in zip(case.network.parameters(), before, strict=True):
        assert torch.equal(parameter, start)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_works_with_the_digits_that_it_has(dtype):
    torch.manual_seed(0)
    network, x = torch.nn.Linear(3, 2).double(), torch.randn(8, 3, dtype=torch.float64)
    directions = []
    for kind in (torch.float64, dtype):
        own = torch.nn.Linear(3, 2).to(kind)
        own.load_state_dict(network.state_dict())
        start = [parameter.detach().double().clone() for parameter in own.parameters()]
        optimizer = hig.HIG(own.parameters(), rcond=1e-2)

        def closure(own=own, kind=kind):
            prediction = own(x.to(kind))
            return prediction.double().square().sum(1).mean(), prediction

        optimizer.step(closure)
        moved = [p.detach().double() - s for p, s in zip(own.parameters(), start, strict=True)]
        directions.append(torch.cat([move.flatten() for move in moved]))
    exact, found = directions
    assert 0 < (found - exact).norm() < 100 * torch.finfo(dtype).eps * exact.norm()
