"""The step from products alone: exact where it has converged, honest where it has not."""

import pytest
import torch

import hig
from hig._jacobian.blocks import DenseBlock, JointJacobian
from hig._jacobian.capture import Capture, ForwardPass
from hig._jacobian.engine import build_jacobian
from hig._jacobian.exactness import ExactnessMemory
from hig._spectral.filters import Damped, HalfInverse
from hig._spectral.lanczos import Krylov
from hig._torch.batched_vjp import BatchedVJP
from tests.hig.networks import ALL, build, least_squares
from tests.textbook import relative_error, step_of, textbook_damped, textbook_power

F32, F64 = torch.float32, torch.float64
SPECTRA = {
    "orders of magnitude": torch.logspace(0, -8, 120, dtype=F64),
    "power law": torch.arange(1, 121, dtype=F64) ** -2,
    "flat": torch.linspace(1, 0.013, 120, dtype=F64),
    "two levels": torch.cat([torch.ones(5), torch.full((115,), 2e-3)]).double(),
}


def sample(values, n=150, columns=200):
    generator = torch.Generator().manual_seed(0)
    left, right = (
        torch.linalg.qr(torch.randn(size, len(values), generator=generator).double())[0]
        for size in (n, columns)
    )
    return left * values @ right.T, torch.randn(n, generator=generator).double()


def krylov(jacobian, dtype=F64, **settings):
    joint = JointJacobian([DenseBlock(jacobian)], len(jacobian), 1, like=jacobian)
    return Krylov(joint, dtype, hig.Lanczos(**settings))


@pytest.mark.parametrize("rcond", [1.7e-2, 1.7e-4, 1e-10])
@pytest.mark.parametrize("kappa", [-1, -0.5, 0, 1])
@pytest.mark.parametrize("name", SPECTRA)
def test_converged_steps_are_those_of_the_textbook(name, kappa, rcond):
    jacobian, gradient = sample(SPECTRA[name])
    found = krylov(jacobian, tolerance=1e-6)
    direction, change = found.step(HalfInverse(kappa, rcond), gradient)
    assert float((change - jacobian @ direction).norm() / direction.norm()) < 1e-13
    error = relative_error(direction, textbook_power(jacobian, gradient, kappa, rcond))
    values = SPECTRA[name]
    rounding = 1e-13 / float(values[values > rcond].min())  # which small values amplify
    assert error < 1e-6 + rounding
    assert error <= 2 * found.error_estimate + rounding
    assert not found.notes


@pytest.mark.parametrize("steps", [20, 40, 80])
@pytest.mark.parametrize("name", SPECTRA)
def test_the_estimate_covers_the_error_of_an_early_stop(name, steps):
    jacobian, gradient = sample(SPECTRA[name])
    found = krylov(jacobian, steps=steps)
    direction, _ = found.step(HalfInverse(rcond=1.7e-4), gradient)
    error = relative_error(direction, textbook_power(jacobian, gradient, -0.5, 1.7e-4))
    assert error <= 2 * found.error_estimate + 1e-9
    if found.error_estimate > 1e-3:
        assert f"stopped after {steps} steps" in found.notes[0]


def test_little_more_steps_than_values_above_the_cut():
    jacobian, gradient = sample(SPECTRA["orders of magnitude"])
    found = krylov(jacobian)
    direction, _ = found.step(HalfInverse(rcond=1e-2), gradient)
    kept = int((SPECTRA["orders of magnitude"] > 1e-2).sum())
    assert kept < len(found.singular_values) < 2 * kept
    assert relative_error(direction, textbook_power(jacobian, gradient, -0.5, 1e-2)) < 1e-3
    torch.testing.assert_close(
        found.singular_values[:kept], SPECTRA["orders of magnitude"][:kept], rtol=1e-6, atol=0
    )
    assert torch.equal(found.spectrum()(), found.singular_values)


def test_another_damping_continues_with_the_bases_there_are():
    jacobian, gradient = sample(SPECTRA["power law"])
    found = krylov(jacobian, tolerance=1e-8)
    for damping in (1e-2, 1e-5):
        direction, _ = found.step(Damped(damping), gradient)
        assert relative_error(direction, textbook_damped(jacobian, gradient, damping)) < 1e-7
    assert found._bases.steps > 30
    bases = found._bases
    found.step(Damped(1e-3), gradient)
    assert found._bases is bases
    direction, _ = found.step(Damped(1e-3), -2 * gradient)
    assert found._bases is not bases
    assert relative_error(direction, textbook_damped(jacobian, -2 * gradient, 1e-3)) < 1e-7


def test_float32_bases():
    jacobian, gradient = sample(SPECTRA["power law"])
    found = krylov(jacobian.float(), F32)
    direction, _ = found.step(HalfInverse(rcond=1.7e-3), gradient)
    assert direction.dtype == F64
    expected = textbook_power(jacobian.float().double(), gradient, -0.5, 1.7e-3)
    assert relative_error(direction, expected) < 1e-3
    assert found.floor == pytest.approx(2.4e-7, rel=0.1)


@pytest.mark.parametrize("dtype", [F32, F64])
@pytest.mark.parametrize("part", ["gradient", "jacobian"])
def test_zeros_give_a_zero_step(part, dtype):
    jacobian, gradient = sample(SPECTRA["flat"])
    (gradient if part == "gradient" else jacobian).zero_()
    found = krylov(jacobian.to(dtype), dtype)
    direction, change = found.step(HalfInverse(), gradient)
    assert direction.shape == (200,) and not direction.any()
    assert change.shape == (150,) and not change.any()
    assert not found.singular_values.any()
    assert float(found.largest) == float(found.squared_norm) == 0
    assert float(found.pulled_norm(gradient)) == 0


def test_squared_sizes_of_the_jacobian():
    jacobian, gradient = sample(SPECTRA["power law"])
    found = krylov(jacobian)
    found.step(Damped(1e-3), gradient)
    values = torch.linalg.svdvals(jacobian).square()
    assert float(found.largest) == pytest.approx(float(values[0]), rel=1e-6)
    assert 0.5 * values.sum() < found.squared_norm <= values.sum() * (1 + 1e-6)
    assert float(found.pulled_norm(gradient)) == pytest.approx(
        float((jacobian.T @ gradient).norm())
    )
    assert found.resolution == found.floor


def test_a_tiny_jacobian_is_complete_after_a_few_steps():
    jacobian, gradient = sample(torch.tensor([1.0, 0.1]).double(), n=2, columns=7)
    found = krylov(jacobian)
    direction, _ = found.step(HalfInverse(), gradient)
    assert relative_error(direction, textbook_power(jacobian, gradient, -0.5, 1e-6)) < 1e-14
    assert found.error_estimate == 0


def test_half_inverse_of_an_explicit_matrix():
    jacobian, gradient = sample(SPECTRA["power law"])
    expected = textbook_power(jacobian, gradient, -0.5, 1.7e-3)
    for method in ("lanczos", hig.Lanczos(1e-8)):
        found = hig.half_inverse(jacobian, gradient, rcond=1.7e-3, method=method)
        assert relative_error(found, expected) < 1e-3


# -- in a step ---------------------------------------------------------------------------------


@pytest.mark.parametrize("engine", ["auto", "rows"])
@pytest.mark.parametrize("name", [name for name in ALL if name != "attention"])
def test_the_step_is_the_one_by_svd(name, engine):
    steps = []
    for method in ("svd", hig.Lanczos(1e-10)):
        network, inputs = build(name)
        optimizer = hig.HIG(network.parameters(), rcond=1e-5, engine=engine, method=method)
        steps.append(step_of(optimizer, least_squares(network, inputs)))
    assert relative_error(*steps[::-1]) < 1e-8
    report = optimizer.report
    assert report.route == "lanczos" and report.error_estimate < 1e-9
    assert "error about" in str(report)
    assert report.engine in (
        {"products"} if engine == "rows" else {"layerwise", "products", "layerwise+products"}
    )


@pytest.mark.parametrize("rule", ["trust", "line_search"])
def test_step_rules_work_on_its_model(rule):
    steps = []
    for method in ("svd", hig.Lanczos(1e-10)):
        network, inputs = build("mlp")
        optimizer = hig.HIG(network.parameters(), step_rule=rule, method=method)
        steps.append(step_of(optimizer, least_squares(network, inputs)))
    assert relative_error(*steps[::-1]) < 1e-8


def test_levenberg_marquardt_and_record():
    steps = []
    for method in ("gram", hig.Lanczos(1e-10)):
        network, inputs = build("mlp")
        optimizer = hig.LevenbergMarquardt(network.parameters(), method=method)
        steps.append(step_of(optimizer, least_squares(network, inputs)))
    assert relative_error(*steps[::-1]) < 1e-7
    network, inputs = build("mlp")
    with hig.record(network.parameters()) as record:
        loss, prediction = least_squares(network, inputs)()
    record.backward(loss, prediction, filter=HalfInverse(), method="lanczos")
    assert record.report.route == "lanczos"


def test_non_finite_products_leave_the_parameters_alone():
    network, inputs = build("mlp")
    before = [p.clone() for p in network.parameters()]

    def closure():
        prediction = network(inputs)
        prediction = prediction + (prediction * 0).abs().sqrt()  # 0, but its slope is not finite
        return prediction.square().sum(), prediction

    optimizer = hig.HIG(network.parameters(), method="lanczos", engine="rows")
    with pytest.raises(hig.NonFiniteError, match="method='gram' names the samples"):
        optimizer.step(closure)
    assert all(torch.equal(a, b) for a, b in zip(before, network.parameters(), strict=True))


class WrongTwice(torch.autograd.Function):
    """Right in its derivative, wrong in the derivative of that."""

    @staticmethod
    def forward(ctx, x):
        return 2 * x

    @staticmethod
    def backward(ctx, gradient):
        return _Scaled.apply(gradient)


class _Scaled(torch.autograd.Function):
    @staticmethod
    def forward(ctx, gradient):
        return 2 * gradient

    @staticmethod
    def backward(ctx, gradient):
        return 3 * gradient


def test_a_wrong_second_derivative_is_noticed():
    network, inputs = build("mlp")

    def closure():
        prediction = WrongTwice.apply(network(inputs))
        return prediction.square().sum(), prediction

    optimizer = hig.HIG(network.parameters(), method="lanczos", engine="rows")
    with pytest.raises(ValueError, match=r"are not adjoint.*method='gram'"):
        optimizer.step(closure)
    optimizer = hig.HIG(network.parameters(), method="lanczos")  # layer by layer: not needed
    optimizer.step(closure)


def test_a_graph_without_second_derivative_is_refused():
    network, inputs = build("attention")
    optimizer = hig.HIG(network.parameters(), method="lanczos", engine="rows")
    with pytest.raises(ValueError, match=r"does not allow .*attention.*; use method='gram'"):
        optimizer.step(least_squares(network, inputs))


@pytest.mark.parametrize(("held_bytes", "route"), [(0, "products"), (2**20, "layerwise")])
def test_factors_too_large_to_hold_are_not_taken(held_bytes, route):
    network, inputs = build("mlp")
    parameters = list(network.parameters())
    with Capture(parameters) as capture:
        prediction = network(inputs)
    names = [name for name, _ in network.named_parameters()]
    forward = ForwardPass(capture.uses, prediction, parameters, names)
    found = build_jacobian(
        forward, "auto", BatchedVJP(), ExactnessMemory(), products=True, held_bytes=held_bytes
    )
    assert set(found.routes) == {route}
    assert bool(found.notes) == (route == "products")
    if found.notes:
        assert found.notes[0].startswith("products by autograd: factors of ")
