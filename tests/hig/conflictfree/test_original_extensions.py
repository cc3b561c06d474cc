"""User-defined classes: both packages call them alike, with the same arguments."""

from collections.abc import Sequence

import numpy as np
import pytest
import torch
from torch import nn

from tests.hig.conflictfree.matrices import random_matrix
from tests.hig.conflictfree.original import OURS, THEIRS, get
from tests.textbook import relative_error

pytestmark = pytest.mark.usefixtures("least_squares")
BOTH = (THEIRS, OURS)


def shown(value):
    """Reduce an argument to its class, shape, dtype and rounded numbers, for comparison."""
    if isinstance(value, torch.Tensor):
        numbers = [float(f"{number:.3g}") for number in value.double().flatten().tolist()]
        return "tensor", tuple(value.shape), value.dtype, value.device.type, numbers
    if isinstance(value, list | tuple):
        return type(value).__name__, [shown(item) for item in value]
    return type(value).__name__, value


def logged(log, name, function):
    def call(self, *args, **kwargs):
        log.append((name, [shown(arg) for arg in args], {k: shown(v) for k, v in kwargs.items()}))
        return function(self, *args, **kwargs)

    return call


def subclass(package, module, base, log, **methods):
    methods = {name: logged(log, name, method) for name, method in methods.items()}
    return type("Own", (get(package, module, base),), methods)


def same_logs(run):
    logs, results = [], []
    for package in BOTH:
        log = []
        results.append(run(package, log))
        logs.append(log)
    assert logs[0]
    assert logs[0] == logs[1]
    return results


@pytest.mark.parametrize("losses", [2, 3, 4])
def test_weight_models(losses):
    rows = random_matrix((losses, 12), dtype=torch.float32)

    def run(package, log):
        def get_weights(self, gradients, losses=None, device=None):
            return 1 + torch.arange(len(gradients), dtype=gradients.dtype)

        own = subclass(package, "weight_model", "WeightModel", log, get_weights=get_weights)
        operator = get(package, "grad_operator", "ConFIGOperator")(weight_model=own())
        return operator.calculate_gradient(list(rows), [0.5] * losses)

    theirs, ours = same_logs(run)
    assert relative_error(ours, theirs) < 1e-4


@pytest.mark.parametrize("weights", [[1.0, 2.0], (1, 3), np.array([2.0, 1.0])])
def test_weights_that_are_not_tensors(weights):
    rows, results = random_matrix((2, 12), dtype=torch.float32), []
    for package in BOTH:
        base = get(package, "weight_model", "WeightModel")
        own = type("Own", (base,), {"get_weights": lambda self, gradients, losses, device: weights})
        results.append(get(package, "grad_operator", "ConFIG_update_double")(*rows, own()))
    assert relative_error(results[1], results[0]) < 1e-4


@pytest.mark.parametrize("simplified", [True, False])
@pytest.mark.parametrize("losses", [2, 3, 5])
@pytest.mark.parametrize("method", ["get_length", "rescale_length"])
@pytest.mark.parametrize("weights", [None, [2.0, 1.0, 0.5, 3.0, 1.0]])
def test_length_models(method, losses, simplified, weights):
    """The vectors that they are given have the length that the original gives them."""
    rows = random_matrix((losses, 20), dtype=torch.float32)

    def run(package, log):
        def get_length(self, target_vector=None, unit_target_vector=None, gradients=None,
                       losses=None):  # fmt: skip
            return target_vector.norm()

        def rescale_length(self, target_vector, gradients=None, losses=None):
            return 2 * target_vector

        def get_weights(self, gradients, losses=None, device=None):
            return torch.tensor(weights[: len(gradients)])

        methods = {"get_length": get_length, "rescale_length": rescale_length}
        own = subclass(package, "length_model", "LengthModel", log, **{method: methods[method]})
        models = {"length_model": own()}
        if weights:
            base = get(package, "weight_model", "WeightModel")
            models["weight_model"] = type("Own", (base,), {"get_weights": get_weights})()
        operator = get(package, "grad_operator", "ConFIGOperator")(
            **models, allow_simplified_model=simplified
        )
        return operator.calculate_gradient(rows, [0.5] * losses)

    theirs, ours = same_logs(run)
    assert relative_error(ours, theirs) < 1e-4


def test_a_tracked_value_of_ones_own():
    rows = random_matrix((3, 20), dtype=torch.float32)

    def run(package, log):
        def tracked(self, grad_norms):
            return grad_norms @ torch.full((3,), 0.5)  # float32, as the gradients are

        base = "_FlexibleTrackProjectionLength"
        own = subclass(package, "length_model", base, log, _tracked_value=tracked)
        return get(package, "grad_operator", "ConFIG_update")(rows, length_model=own())

    theirs, ours = same_logs(run)
    assert relative_error(ours, theirs) < 1e-4


@pytest.mark.parametrize("kind", ["GradientOperator", "ConFIGOperator", "PCGradOperator"])
def test_operators(kind):
    rows = random_matrix((3, 6), dtype=torch.float32)

    def run(package, log):
        def calculate_gradient(self, grads, losses=None):
            return sum(grads)

        own = subclass(package, "grad_operator", kind, log, calculate_gradient=calculate_gradient)
        network = nn.Linear(5, 1)
        network(torch.ones(1, 5)).sum().backward()
        own().update_gradient(network, list(rows), [1.0, 2.0, 3.0])
        own().update_gradient(network, rows)
        return torch.cat([network.weight.grad.flatten(), network.bias.grad])

    theirs, ours = same_logs(run)
    assert torch.equal(theirs, ours)


@pytest.mark.parametrize("at_once", [1, 2])
def test_parts_of_operators_with_a_memory(at_once):
    """The operator, the recorder and the helpers below ``calculate_gradient``."""
    gradients = random_matrix((8, 6), dtype=torch.float32)

    def run(package, log):
        def calculate_gradient(self, grads, losses=None):
            return grads.sum(0)

        def record_loss(self, losses_indexes, losses):
            indexes, losses = self._preprocess_losses(losses_indexes, losses)
            for index, loss in zip(indexes, losses, strict=True):
                self.current_losses[index] = loss
            return self.current_losses

        base = get(package, "momentum_operator", "PseudoMomentumOperator")
        operator = subclass(
            package, "momentum_operator", "PseudoMomentumOperator", log,
            _preprocess_gradients_losses=base._preprocess_gradients_losses,
        )(
            2,
            gradient_operator=subclass(
                package, "grad_operator", "GradientOperator", log,
                calculate_gradient=calculate_gradient,
            )(),
            loss_recorder=subclass(
                package, "loss_recorder", "LossRecorder", log, record_loss=record_loss
            )(2),
        )  # fmt: skip
        found = []
        for step in range(4):
            if at_once == 1:
                call = (step % 2, gradients[step], float(step))
            else:
                call = ([0, 1], [gradients[step], gradients[step + 1]], [0.5, float(step)])
            found.append(operator.calculate_gradient(*call))
        assert isinstance(operator.m, list)
        assert (operator.len_vectors, operator.device.type) == (6, "cpu")
        return torch.stack(found)

    theirs, ours = same_logs(run)
    assert relative_error(ours, theirs) < 1e-5


def test_an_operator_with_a_memory_of_ones_own():
    """Written as the original's documentation of the helper asks for it."""

    def run(package):
        def calculate_gradient(self, indexes, grads, losses=None):
            indexes, grads, losses = self._preprocess_gradients_losses(indexes, grads, losses)
            assert isinstance(indexes, Sequence)
            if not hasattr(self, "sums"):
                self.sums = torch.zeros(self.num_vectors, self.len_vectors, device=self.device)
            for index, grad in zip(indexes, grads, strict=True):
                self.sums[index] = self.beta_1 * self.sums[index] + grad
            return self.gradient_operator.calculate_gradient(self.sums, losses)

        base = get(package, "momentum_operator", "MomentumOperator")
        operator = type("Own", (base,), {"calculate_gradient": calculate_gradient})(
            2, loss_recorder=get(package, "loss_recorder", "LatestLossRecorder")(2)
        )
        network = nn.Linear(5, 1)
        network(torch.ones(1, 5)).sum().backward()
        rows = random_matrix((2, 6), dtype=torch.float32)
        operator.update_gradient(network, [0, 1], list(rows), [1.0, 2.0])
        operator.update_gradient(network, 1, rows[1], torch.tensor(3.0))
        return torch.cat([network.weight.grad.flatten(), network.bias.grad])

    assert relative_error(run(OURS), run(THEIRS)) < 1e-5


# -- states by attributes ----------------------------------------------------------------------

PSEUDO = ("m", "s", "fake_m", "t", "t_grads", "all_initialized")
SEPARATE = ("m", "s", "t_grads", "all_initialized")


def steps(operator, gradients):
    return [operator.calculate_gradient(k % 2, g) for k, g in enumerate(gradients)]


@pytest.mark.parametrize(
    ("kind", "names"), [("PseudoMomentumOperator", PSEUDO), ("SeparateMomentumOperator", SEPARATE)]
)
@pytest.mark.parametrize("without", [(), ("all_initialized",)])
@pytest.mark.parametrize("form", [lambda value: value, torch.stack])
def test_a_state_by_attributes_is_resumed(kind, names, without, form, tmp_path):
    gradients = random_matrix((12, 7), dtype=torch.float32)
    make = get(OURS, "momentum_operator", kind)
    whole, first = make(2), make(2)
    expected = steps(whole, gradients)[6:]
    steps(first, gradients[:6])
    torch.save({name: getattr(first, name) for name in names}, tmp_path / "state")
    state = torch.load(tmp_path / "state", weights_only=True)
    second = make(2)
    for name, value in state.items():
        if name not in without:
            setattr(second, name, form(value) if name == "m" else value)
    for found, other in zip(steps(second, gradients[6:]), expected, strict=True):
        assert torch.equal(found, other)


def test_the_attributes_are_those_of_the_original():
    gradients = random_matrix((5, 7), dtype=torch.float32)
    operators = [get(package, "momentum_operator", "PseudoMomentumOperator")(2) for package in BOTH]
    for count in range(6):
        theirs, ours = operators
        for name in (*PSEUDO, "len_vectors", "device", "num_vectors", "beta_1", "beta_2"):
            one, other = getattr(theirs, name), getattr(ours, name)
            if name in ("m", "s", "fake_m") and one is not None:
                assert isinstance(other, type(one))
                values = [torch.stack(v) if isinstance(v, list) else v for v in (one, other)]
                assert relative_error(values[1], values[0]) < 1e-5 or not values[0].any()
            else:
                assert one == other
        if count < 5:
            for operator in operators:
                operator.calculate_gradient(count % 2, gradients[count])


def test_what_a_script_has_kept_stays_as_it_was():
    for package in BOTH:
        operator = get(package, "momentum_operator", "PseudoMomentumOperator")(2)
        gradients = random_matrix((8, 7), dtype=torch.float32)
        steps(operator, gradients[:4])
        kept = [*operator.m, operator.s, operator.fake_m]
        copies = [tensor.clone() for tensor in kept]
        steps(operator, gradients[4:])
        assert all(map(torch.equal, kept, copies))


def test_moments_of_another_length_are_refused_before_anything_changes():
    operator = get(OURS, "momentum_operator", "PseudoMomentumOperator")(2)
    operator.m, operator.s, operator.fake_m = [torch.ones(3)] * 2, torch.ones(3), torch.ones(3)
    with pytest.raises(ValueError, match=r"expected gradients of shape \(1, 3\)"):
        operator.calculate_gradient(0, torch.ones(4))
    assert operator.t_grads == [0, 0]
