"""Rows of the controls in place of those of the outputs."""

import numpy as np
import pytest
import torch

import hig
from hig._jacobian.compression import control_jacobian, control_products
from hig._torch.batched_vjp import BatchedVJP
from tests.textbook import flat, relative_error, step_of, textbook_damped, textbook_jacobian
from tests.textbook import textbook_power as power

SAMPLES, CONTROLS, OUTPUTS = 5, 3, 11


def problem(dtype=torch.float64, head=lambda values: values, samples=SAMPLES):
    """A network with few controls before a simulator with many outputs, and its closure."""
    torch.manual_seed(0)
    network = torch.nn.Sequential(
        torch.nn.Linear(4, 6), torch.nn.Tanh(), torch.nn.Linear(6, CONTROLS)
    ).to(dtype)
    inputs = torch.randn(samples, 4, dtype=dtype)
    matrix = torch.randn(CONTROLS, OUTPUTS, dtype=dtype)
    weights = torch.linspace(0.5, 2, OUTPUTS, dtype=dtype)

    def closure():
        changed = head(network(inputs)) @ matrix
        prediction = changed.sin() + 0.1 * changed.square()
        return (weights * (prediction - 0.3).square()).sum(1).mean(), prediction

    return network, closure


def linearised(network, closure):
    """Dense Jacobian of all outputs, and the gradient of the loss in them."""
    loss, prediction = closure()
    jacobian = textbook_jacobian(prediction, network.parameters())
    (gradient,) = torch.autograd.grad(loss, prediction)
    return jacobian, gradient.flatten()


def all_rows(values):
    """Hide the controls from the step: it does not use a tensor that was changed in place."""
    return values.mul_(1.0)


DIRECTIONS = {
    "hig": (lambda p, **o: hig.HIG(p, rcond=1e-6, **o), lambda j, g: power(j, g, -0.5, 1e-6)),
    "gn": (lambda p, **o: hig.GaussNewton(p, rcond=1e-6, **o), lambda j, g: power(j, g, -1, 1e-6)),
    "lm": (
        lambda p, **o: hig.LevenbergMarquardt(p, damping=1e-3, **o),
        lambda j, g: textbook_damped(j, g, 1e-3),
    ),
}
EACH = pytest.mark.parametrize(("make", "expected"), DIRECTIONS.values(), ids=DIRECTIONS)


@EACH
@pytest.mark.parametrize("engine", ["auto", "rows", "layerwise"])
@pytest.mark.parametrize("method", ["auto", "gram", "svd"])
def test_the_step_is_that_of_all_outputs(make, expected, engine, method):
    network, closure = problem()
    jacobian, gradient = linearised(network, closure)
    options = {"lr": 0.1, "step_rule": "fixed", "engine": engine, "method": method}
    optimizer = make(network.parameters(), **options)
    change = step_of(optimizer, closure)
    assert relative_error(change, -0.1 * expected(jacobian, gradient)) < 1e-9
    report = optimizer.report
    assert report.rows == SAMPLES * CONTROLS
    assert f"rows 15 = {SAMPLES} samples x {CONTROLS} controls for {OUTPUTS} outputs" in str(report)


def test_singular_values_are_those_of_all_outputs():
    network, closure = problem()
    jacobian, _ = linearised(network, closure)
    optimizer = hig.HIG(network.parameters(), lr=0.1)
    optimizer.step(closure)
    values = torch.linalg.svdvals(jacobian)[: SAMPLES * CONTROLS]
    torch.testing.assert_close(
        optimizer.report.singular_values, values, rtol=1e-9, atol=1e-12 * float(values[0])
    )


@EACH
@pytest.mark.parametrize("momentum", ["plain", "projected"])
@pytest.mark.parametrize("rule", ["trust", "line_search"])
def test_measured_steps_are_those_of_all_outputs(make, expected, momentum, rule):
    options = {"step_rule": rule, "momentum": 0.5, "momentum_kind": momentum}
    network, closure = problem()
    whole, whole_closure = problem(head=all_rows)
    optimizers = make(network.parameters(), **options), make(whole.parameters(), **options)
    for _ in range(6):
        optimizers[0].step(closure)
        optimizers[1].step(whole_closure)
        first, second = (optimizer.report for optimizer in optimizers)
        assert first.rows == SAMPLES * CONTROLS and second.rows == SAMPLES * OUTPUTS
        assert first.step_size == pytest.approx(second.step_size, rel=1e-7)
    assert relative_error(flat(network.parameters()), flat(whole.parameters())) < 1e-7


def test_record_takes_them():
    network, closure = problem()
    jacobian, gradient = linearised(network, closure)
    record = hig.record(network.parameters())
    with record:
        loss, prediction = closure()
    record.backward(loss, prediction, hig.HalfInverse(rcond=1e-6))
    assert record.report.rows == SAMPLES * CONTROLS
    direction = flat(parameter.grad for parameter in network.parameters())
    assert relative_error(direction, power(jacobian, gradient, -0.5, 1e-6)) < 1e-9


def test_diagnose_takes_them():
    network, closure = problem()
    diagnosis = hig.diagnose(network.parameters(), closure, rcond=1e-6)
    assert f"J 15 x {sum(p.numel() for p in network.parameters())} (5 samples" in str(diagnosis)
    assert diagnosis.results()["fewer_rows"] == {
        "samples": SAMPLES, "rows": CONTROLS, "outputs": OUTPUTS, "exact": True,
    }  # fmt: skip


def test_in_float32_it_is_as_near_to_the_truth():
    network, closure = problem()
    jacobian, gradient = linearised(network, closure)
    expected = -0.1 * power(jacobian, gradient, -0.5, 1e-3)
    errors = []
    for head in (lambda values: values, all_rows):
        single, closure = problem(torch.float32, head)
        single.load_state_dict(network.state_dict())
        change = step_of(hig.HIG(single.parameters(), lr=0.1, rcond=1e-3), closure)
        errors.append(relative_error(change.double(), expected))
    assert errors[0] < 4 * errors[1] + 1e-6


@EACH
def test_a_sketch_of_fewer_rows_than_controls_is_taken_of_the_outputs(make, expected):
    network, closure = problem()
    optimizer = make(network.parameters(), lr=0.1, step_rule="fixed", sketch=2)
    optimizer.step(closure)
    assert optimizer.report.rows == 2 * SAMPLES
    assert "x 2 of 11 outputs" in str(optimizer.report)


@EACH
def test_a_sketch_of_more_rows_than_controls_is_the_exact_step(make, expected):
    network, closure = problem()
    jacobian, gradient = linearised(network, closure)
    optimizer = make(network.parameters(), lr=0.1, step_rule="fixed", sketch=4)
    change = step_of(optimizer, closure)
    assert optimizer.report.rows == CONTROLS * SAMPLES
    assert relative_error(change, -0.1 * expected(jacobian, gradient)) < 1e-9


class Coupled(torch.nn.Module):
    """A simulator in which samples influence one another."""

    def forward(self, values):
        return values - 0.1 * values.mean(0)


def named_head(function):
    """A function of the last layer's output that hides it, and names the controls."""

    def head(values):
        return hig.controls(function(values.mul_(1.0)))

    return head


CONTROLS_OF = {
    "last layer": lambda values: values,
    "bounded": torch.tanh,
    "named": named_head(torch.tanh),
    "in two parts": lambda v: torch.cat(
        [hig.controls(part) for part in v.mul_(1.0).tanh().split([1, CONTROLS - 1], 1)], 1
    ),
    "with an axis": lambda values: hig.controls(values.mul_(1.0).unsqueeze(2)).squeeze(2),
}


@pytest.mark.parametrize("head", CONTROLS_OF.values(), ids=CONTROLS_OF)
def test_controls_are_found_or_named(head):
    network, closure = problem(head=head)
    jacobian, gradient = linearised(network, closure)
    optimizer = hig.HIG(network.parameters(), lr=0.1, rcond=1e-6)
    change = step_of(optimizer, closure)
    assert optimizer.report.rows == SAMPLES * CONTROLS and not optimizer.report.notes
    assert relative_error(change, -0.1 * power(jacobian, gradient, -0.5, 1e-6)) < 1e-9


def test_a_layer_that_folds_time_into_the_batch_has_controls():
    torch.manual_seed(0)
    network = torch.nn.Linear(4, 1).double()
    inputs, matrix = torch.randn(SAMPLES, 3, 4).double(), torch.randn(3, OUTPUTS).double()

    def closure():
        prediction = (network(inputs.flatten(0, 1)).view(SAMPLES, 3) @ matrix).sin()
        return prediction.square().sum(1).mean(), prediction

    jacobian, gradient = linearised(network, closure)
    optimizer = hig.HIG(network.parameters(), lr=0.1, rcond=1e-6)
    change = step_of(optimizer, closure)
    assert optimizer.report.rows == SAMPLES * 3
    assert relative_error(change, -0.1 * power(jacobian, gradient, -0.5, 1e-6)) < 1e-9


def refused(head, text):
    """Check that a step has all rows, and a note with this text; without one if it is empty."""
    network, closure = problem(head=head)
    jacobian, gradient = linearised(network, closure)
    optimizer = hig.HIG(network.parameters(), lr=0.1, rcond=1e-6)
    change = step_of(optimizer, closure)
    assert optimizer.report.rows == SAMPLES * OUTPUTS
    notes = "; ".join(optimizer.report.notes)
    assert text in notes and (text or not notes)
    assert relative_error(change, -0.1 * power(jacobian, gradient, -0.5, 1e-6)) < 1e-9


def test_a_layer_output_that_was_changed_in_place_is_not_used():
    refused(all_rows, "")


def test_named_controls_that_were_changed_in_place_are_not_used():
    refused(lambda v: hig.controls(v.clone()).mul_(2.0), "changed in place")


def test_as_many_controls_as_outputs_are_not_used():
    wide = torch.eye(CONTROLS, OUTPUTS, dtype=torch.float64)
    refused(
        lambda v: hig.controls(v.mul_(1.0) @ wide)[:, :CONTROLS],
        "11 controls are not fewer than 11 outputs",
    )


def test_controls_beside_which_parameters_act_are_not_used():
    refused(lambda v: hig.controls(v.tanh()) + v, "depend on parameters in another way")


def test_controls_of_one_another_are_not_used():
    def head(values):
        first = hig.controls(values.clone()[:, :1])
        return torch.cat([first, hig.controls(values.clone()[:, 1:] + first)], 1)

    refused(head, "some of them depend on others")


def test_controls_without_the_samples_first_are_not_used():
    refused(lambda v: hig.controls(v.mul_(1.0).T[:2].tanh()).T @ torch.ones(2, 3).double(), "shape")


def test_samples_that_influence_one_another_have_all_rows():
    network, closure = problem(head=Coupled())
    jacobian, gradient = linearised(network, closure)
    optimizer = hig.HIG(network.parameters(), lr=0.1, rcond=1e-6)
    change = step_of(optimizer, closure)
    assert optimizer.report.rows == SAMPLES * OUTPUTS
    assert "not of the controls: samples influence one another" in str(optimizer.report)
    assert relative_error(change, -0.1 * power(jacobian, gradient, -0.5, 1e-6)) < 1e-9


class Once(torch.autograd.Function):
    """A simulator without second derivatives."""

    @staticmethod
    def forward(ctx, values):
        ctx.save_for_backward(values)
        return values.sin()

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, cotangent):
        return cotangent * ctx.saved_tensors[0].cos()


class WrongTwice(torch.autograd.Function):
    """A simulator whose second derivative is silently wrong."""

    @staticmethod
    def forward(ctx, values):
        ctx.save_for_backward(values)
        return values.sin()

    @staticmethod
    def backward(ctx, cotangent):
        return cotangent * ctx.saved_tensors[0].cos() + (cotangent - cotangent.detach())


@pytest.mark.parametrize("function", [Once, WrongTwice])
def test_second_derivatives_are_needed_by_none(function):
    network, closure = problem(head=function.apply)
    jacobian, gradient = linearised(network, closure)
    optimizer = hig.HIG(network.parameters(), lr=0.1, rcond=1e-6)
    change = step_of(optimizer, closure)
    assert optimizer.report.rows == SAMPLES * CONTROLS
    assert relative_error(change, -0.1 * power(jacobian, gradient, -0.5, 1e-6)) < 1e-9


def test_products_and_passes_agree():
    network, _ = problem()
    values = network(torch.randn(SAMPLES, 4, dtype=torch.float64))
    prediction = torch.cat([values.sin(), values.exp(), values.square() * values[:, :1], values], 1)
    by_products = control_products(prediction, [values], BatchedVJP())
    torch.testing.assert_close(by_products, control_jacobian(prediction, [values], BatchedVJP()))


def test_simulators_of_the_library_have_controls():
    def step(state, control):
        return state + 0.1 * (state.roll(1, 1) - state.sin()) + control @ torch.ones(1, 8).double()

    def rolled(values):
        start = torch.linspace(0, 1, 8, dtype=torch.float64).expand(len(values), 8)
        return hig.rollout(step, start, values.unsqueeze(2))

    def boxed(values):
        matrix = torch.linspace(-1, 1, 3 * 8, dtype=torch.float64).view(3, 8)
        box = hig.black_box(
            lambda v: (
                np.sin(v @ matrix.numpy()),
                lambda c: (c * np.cos(v @ matrix.numpy())) @ matrix.numpy().T,
            )
        )
        return box(values)

    for simulate in (rolled, boxed):
        network, _ = problem()
        inputs = torch.randn(SAMPLES, 4, dtype=torch.float64)

        def closure(network=network, simulate=simulate, inputs=inputs):
            prediction = simulate(network(inputs))
            return (prediction - 0.3).square().sum(1).mean(), prediction

        jacobian, gradient = linearised(network, closure)
        optimizer = hig.HIG(network.parameters(), lr=0.1, rcond=1e-6)
        change = step_of(optimizer, closure)
        assert optimizer.report.rows == SAMPLES * CONTROLS
        assert relative_error(change, -0.1 * power(jacobian, gradient, -0.5, 1e-6)) < 1e-9


def test_controls_returns_the_same_tensor_and_refuses_others():
    values = torch.ones(2, 3)
    assert hig.controls(values) is values
    with pytest.raises(TypeError, match="controls must be a tensor"):
        hig.controls([1.0])


def test_one_shared_prediction_of_several_losses_has_all_rows():
    network, closure = problem()

    def several():
        loss, prediction = closure()
        return [(loss, prediction), (prediction.square().sum(1).mean(), prediction)]

    optimizer = hig.MultiHIG(network.parameters(), lr=0.1)
    optimizer.step(several)
    assert optimizer.report.parts[0].rows == SAMPLES * OUTPUTS
